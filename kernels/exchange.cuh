// How operands come from the blocks that made them. Grid: through global memory and a counter; Cluster: straight into the shared
// memory of the blocks that need them; Alone: from the block itself, which has all units.
//
//     RESIDENT                                whether all blocks of a launch are there at a time
//     words()                                 of shared memory, before what recur() needs itself
//     begin(memory, cell, first_row)          before the first step
//     fetch(cell, step, s, row, first)        the tile of ROWS rows from `row` on in shared memory, for all threads
//     put(s, r, u, words)                     what unit u of the block made for row r of the pass
//     publish(s, last), end()                 after each step but the last, of them the last one, and after that
#pragma once
#include "persistent.cuh"

#if defined(CLUSTER_BLOCKS)
#define BLOCKS CLUSTER(CLUSTER_BLOCKS)
#else
#define BLOCKS
#endif

// A word as products read it.
__device__ inline WORD operand_of(WORD word) {
#if defined(PRODUCT_TF32)
    return __uint_as_float(to_tf32(word));
#else
    return word;
#endif
}

// Rows of an operand on their way to a tile in shared memory: 16 bytes at a time, or 4 where rows are not aligned to 16. Words
// beyond the rows and the depth stay what they are. Between begin() and end() a thread may do something else.
struct Copy {
    WORD* tile;
    i64 rows;
    int each, per_row;  // words of a piece, pieces of a row: narrow rows are whole pieces, with zeros at their ends

    __device__ void begin(WORD* to_tile, const WORD* from, i64 from_row, i64 count, i64 depth) {
        const int bytes = from_row * sizeof(WORD) % 16 ? 4 : 16;
        tile = to_tile, rows = count, each = bytes / sizeof(WORD), per_row = (depth + each - 1) / each;
        for (int n = threadIdx.x; n < rows * per_row; n += THREADS) {
            WORD* to = tile + n / per_row * STRIDE + n % per_row * each;
            const WORD* source = from + n / per_row * from_row + n % per_row * each;
            if (bytes == 16)
                cp_async_16(to, source);
            else
                cp_async_4(to, source);
        }
        cp_async_commit();
    }

    __device__ void end() const {
        cp_async_wait<0>();
#if defined(PRODUCT_TF32)
        for (int n = threadIdx.x; n < rows * per_row; n += THREADS)  // each thread rounds what it brought
            for (int k = 0; k < each; ++k) {
                WORD* word = tile + n / per_row * STRIDE + n % per_row * each + k;
                *word = operand_of(*word);
            }
#endif
    }
};
__device__ inline void copy_rows(WORD* tile, const WORD* from, i64 from_row, i64 rows, i64 depth) {
    Copy copy;
    copy.begin(tile, from, from_row, rows, depth);
    copy.end();
}

// Tiles of shared memory without a word that nobody wrote, the first with the operand of step 0, if it has one.
template <class Cell> __device__ void begin_tiles(WORD* memory, int words, const Cell& cell, i64 row, bool copied) {
    for (int n = threadIdx.x; n < words; n += THREADS) memory[n] = word_of(0);
    __syncthreads();
    if (!copied || !cell.at(0).linked) return;
    i64 rows = cell.batch - row < ROWS ? cell.batch - row : ROWS;
    copy_rows(memory, cell.operand(cell.at(0)) + row * cell.operand_row, cell.operand_row, rows, cell.depth());
    __syncthreads();
}

// Operands are the sequence's own arrays in global memory, where cells write them anyway. The blocks of the same rows count their
// arrivals; all of them must be resident, or they wait for ever: persistent.py sees to it.
template <class Cell> struct Grid {
    static constexpr bool RESIDENT = true;
    unsigned* arrived;  // zero before and after a launch; the number of those that leave stands 128 bytes on
    unsigned met = 0;   // arrivals that stand for all steps so far
    WORD* tile;

    __device__ explicit Grid(unsigned* counters) : arrived(counters + blockIdx.y * 64) {}
    static __device__ constexpr int words() { return ROWS * STRIDE; }

    __device__ void begin(WORD* memory, const Cell& cell, i64 row) { begin_tiles(tile = memory, words(), cell, row, false); }

    __device__ const WORD* fetch(const Cell& cell, const Step& step, i64, i64 row, bool first) {
        if (first) {
            if (threadIdx.x == 0)
                while (load_acquire(arrived) < met) {
                }
            __syncthreads();
        }
        i64 rows = cell.batch - row < ROWS ? cell.batch - row : ROWS;
        copy_rows(tile, cell.operand(step) + row * cell.operand_row, cell.operand_row, rows, cell.depth());
        __syncthreads();
        return tile;
    }

    __device__ void put(i64, int, int, const WORD*) {}

    __device__ void publish(i64, bool) {
        __syncthreads();
        if (threadIdx.x == 0) add_release(arrived, 1u);
        met += gridDim.x;
    }

    // The last to leave puts the counters back: by then nobody reads them any more.
    __device__ void end() {
        if (threadIdx.x || add_release(arrived + 32, 1u) != gridDim.x - 1) return;
        load_acquire(arrived + 32);
        store_release(arrived, 0u);
        store_release(arrived + 32, 0u);
    }
};

// The block has all units: what it makes goes to the other of two tiles.
template <class Cell> struct Alone {
    static constexpr bool RESIDENT = false;
    WORD* tiles;

    __device__ explicit Alone(unsigned*) {}
    static __device__ constexpr int words() { return 2 * ROWS * STRIDE; }
    __device__ void begin(WORD* memory, const Cell& cell, i64 row) { begin_tiles(tiles = memory, words(), cell, row, true); }
    __device__ const WORD* fetch(const Cell&, const Step&, i64 s, i64, bool) { return tiles + s % 2 * (ROWS * STRIDE); }
    __device__ void put(i64 s, int r, int u, const WORD* made) {
        WORD* to = tiles + ((s + 1) % 2 * ROWS + r) * STRIDE + u * Cell::WORDS;
        #pragma unroll
        for (int k = 0; k < Cell::WORDS; ++k) to[k] = operand_of(made[k]);
    }
    __device__ void publish(i64, bool) { __syncthreads(); }
    __device__ void end() {}
};

#if defined(CLUSTER_BLOCKS)

// The cluster has all units, blockIdx.x is a block's rank. Each block gathers what its units made and sends it, 16 bytes at a time,
// into a tile of every block of the cluster, its own too; the mbarrier `full` of that tile counts the bytes. Two tiles take turns:
// who has read one tells all, `empty`, a step before they send into it again, so that in fact nobody waits for that.
template <class Cell> struct Cluster {
    static constexpr bool RESIDENT = false;
    static constexpr int OWN = UNITS * Cell::WORDS, PIECE = 16 / sizeof(WORD), PIECES = OWN / PIECE;  // of a row
    static constexpr int SENT = CLUSTER_BLOCKS * OWN < DEPTH ? CLUSTER_BLOCKS * OWN : DEPTH;         // words of a whole row
    static_assert(OWN % PIECE == 0, "whole pieces");
    WORD *tiles, *made_here;
    unsigned long long *full, *empty;

    __device__ explicit Cluster(unsigned*) {}
    static __device__ constexpr int words() { return 2 * ROWS * STRIDE + ROWS * OWN; }

    __device__ void begin(WORD* memory, const Cell& cell, i64 row) {
        __shared__ unsigned long long barriers[4];
        tiles = memory;
        made_here = memory + 2 * ROWS * STRIDE;
        full = barriers;
        empty = barriers + 2;
        if (threadIdx.x < 4) mbarrier_init(barriers + threadIdx.x, threadIdx.x < 2 ? 1 : CLUSTER_BLOCKS);
        begin_tiles(memory, words(), cell, row, true);
        mbarrier_fence_init();
        cluster_sync();
    }

    __device__ const WORD* fetch(const Cell&, const Step&, i64 s, i64, bool) {
        if (s > 0) mbarrier_wait(full + s % 2, (s - 1) / 2 % 2);
        return tiles + s % 2 * (ROWS * STRIDE);
    }

    __device__ void put(i64, int r, int u, const WORD* made) {
        #pragma unroll
        for (int k = 0; k < Cell::WORDS; ++k) made_here[r * OWN + u * Cell::WORDS + k] = operand_of(made[k]);
    }

    __device__ void publish(i64 s, bool last) {
        int turn = (s + 1) % 2;
        __syncthreads();
        if (threadIdx.x == 0) mbarrier_arrive_expect_tx(full + turn, ROWS * SENT * sizeof(WORD));
        if (threadIdx.x < CLUSTER_BLOCKS && !last) mbarrier_arrive_remote(empty + s % 2, threadIdx.x);
        if (s > 0) mbarrier_wait(empty + turn, (s - 1) / 2 % 2);
        for (int n = threadIdx.x; n < ROWS * PIECES; n += THREADS) {
            int r = n / PIECES, own = n % PIECES * PIECE, column = cluster_rank() * OWN + own;
            if (column >= DEPTH) continue;  // of units that there are not
            uint4 piece = *reinterpret_cast<const uint4*>(made_here + r * OWN + own);
            WORD* to = tiles + (turn * ROWS + r) * STRIDE + column;
            for (unsigned rank = 0; rank < CLUSTER_BLOCKS; ++rank)
                st_async(reinterpret_cast<uint4*>(to), piece, full + turn, rank);
        }
    }

    __device__ void end() {}
};

#endif
