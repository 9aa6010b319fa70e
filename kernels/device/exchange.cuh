// How operands come from the blocks that made them. Grid: through global memory and a counter; Cluster: straight into the shared
// memory of the blocks that need them; Alone: from the block itself, which has all units.
//
//     RESIDENT, ONE_PASS, OFFERED             whether all blocks of a launch are there at a time; whether a block has but ROWS
//                                             rows; whether put() writes to the operands' array in global memory
//     words()                                 of shared memory, before what recur() needs itself
//     begin(memory, cell, first_row)          before the first step
//     fetch(cell, step, s, row, first)        the tile of ROWS rows from `row` on in shared memory, for all threads
//     put(cell, step, s, n, row, unit, made)  what was made for the n-th (row, unit) pair of the block
//     publish(s), end()                       after all pairs of each step but the last, and after all steps
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
    int rows, depth;
    bool wide;

    __device__ void begin(WORD* to_tile, Rows<const WORD> from, int count, int words) {
        tile = to_tile, rows = count, depth = words, wide = from.bytes % 16 == 0;
        if (wide)
            each<16>([&](int r, int k) { cp_async_16(tile + r * STRIDE + k, from.at(r, k)); });
        else
            each<4>([&](int r, int k) { cp_async_4(tile + r * STRIDE + k, from.at(r, k)); });
        cp_async_commit();
    }

    __device__ void end() const {
        cp_async_wait<0>();
#if defined(PRODUCT_TF32)
        if (wide)  // each thread rounds what it brought
            each<16>([&](int r, int k) { round<16>(tile + r * STRIDE + k); });
        else
            each<4>([&](int r, int k) { round<4>(tile + r * STRIDE + k); });
#endif
    }

    // Calls f(row, word) for each piece of this thread; narrow rows are whole pieces, with zeros at their ends.
    template <int BYTES, class F> __device__ void each(F f) const {
        constexpr int EACH = BYTES / sizeof(WORD), PER_ROW = DEPTH / EACH;
        #pragma unroll(BYTES == 16 ? 4 : 1)
        for (int n = threadIdx.x; n < ROWS * PER_ROW; n += THREADS) {
            const int r = n / PER_ROW, k = n % PER_ROW * EACH;
            if (r < rows && k < depth) f(r, k);
        }
    }
    template <int BYTES> static __device__ void round(WORD* words) {
        for (int k = 0; k < int(BYTES / sizeof(WORD)); ++k) words[k] = operand_of(words[k]);
    }
};
__device__ inline void copy_rows(WORD* tile, Rows<const WORD> from, int rows, int depth) {
    Copy copy;
    copy.begin(tile, from, rows, depth);
    copy.end();
}

// Tiles of shared memory without a word that nobody wrote, the first with the operand of step 0, if it has one.
template <class Cell> __device__ void begin_tiles(WORD* memory, int words, const Cell& cell, int row, bool copied) {
    for (int n = threadIdx.x; n < words; n += THREADS) memory[n] = word_of(0);
    __syncthreads();
    if (!copied || !cell.first().linked) return;
    int rows = min(int(cell.batch) - row, ROWS);
    copy_rows(memory, cell.operand(cell.first()).from(row), rows, cell.depth());
    __syncthreads();
}

// The operands of the n-th (row, unit) pair as products read them; pairs stand side by side in `to`.
template <class Made> __device__ inline void put_operand(WORD* to, const Made& made) {
    constexpr int WORDS = sizeof(made.words) / sizeof(WORD);
    WORD words[WORDS];
    #pragma unroll
    for (int k = 0; k < WORDS; ++k) words[k] = operand_of(made.words[k]);
    store<WORDS>(to, words);
}

// Operands are the sequence's own arrays in global memory, where cells write them anyway. The blocks of the same rows count their
// arrivals; all of them must be resident, or they wait for ever: persistent.py sees to it.
template <class Cell> struct Grid {
    static constexpr bool RESIDENT = true, ONE_PASS = false, OFFERED = true;
    unsigned* arrived;  // zero before and after a launch; the number of those that leave stands 128 bytes on
    unsigned met = 0;   // arrivals that stand for all steps so far
    WORD* tile;

    __device__ explicit Grid(unsigned* counters) : arrived(counters + blockIdx.y * 64) {}
    static __device__ constexpr int words() { return ROWS * STRIDE; }

    __device__ void begin(WORD* memory, const Cell& cell, int row) { begin_tiles(tile = memory, words(), cell, row, false); }

    __device__ const WORD* fetch(const Cell& cell, const Step& step, unsigned, int row, bool first) {
        if (first) {
            if (threadIdx.x == 0)
                while (load_acquire(arrived) < met) {
                }
            __syncthreads();
        }
        int rows = min(int(cell.batch) - row, ROWS);
        copy_rows(tile, cell.operand(step).from(row), rows, cell.depth());
        __syncthreads();
        return tile;
    }

    template <class Made>
    __device__ void put(const Cell& cell, const Step& step, unsigned, int, int row, int unit, const Made& made) {
        cell.offer(step, row, unit, made);
    }

    __device__ void publish(unsigned) {
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
    static constexpr bool RESIDENT = false, ONE_PASS = true, OFFERED = false;
    WORD* tiles;

    __device__ explicit Alone(unsigned*) {}
    static __device__ constexpr int words() { return 2 * ROWS * STRIDE; }
    __device__ void begin(WORD* memory, const Cell& cell, int row) { begin_tiles(tiles = memory, words(), cell, row, true); }
    __device__ const WORD* fetch(const Cell&, const Step&, unsigned s, int, bool) { return tiles + s % 2 * (ROWS * STRIDE); }
    template <class Made> __device__ void put(const Cell&, const Step&, unsigned s, int n, int, int, const Made& made) {
        put_operand(tiles + ((s + 1) % 2 * ROWS + n / UNITS) * STRIDE + n % UNITS * Cell::WORDS, made);
    }
    __device__ void publish(unsigned) { __syncthreads(); }
    __device__ void end() {}
};

#if defined(CLUSTER_BLOCKS)

// The cluster has all units, blockIdx.x is a block's rank. Each warp gathers what its units made and sends it, 16 bytes at a time,
// into a tile of every block of the cluster, its own too. Two tiles take turns, each with an mbarrier, `full`, whose phase ends
// when the operand of a step is there and when all that was in the way of the next one is gone. It counts
//
//     the bytes of the operand,
//     one arrival of each of the other blocks: "we have multiplied, and read our tile of this step no more", after the barrier
//     that stands between a block's product and its pointwise part,
//     one arrival of each of the block's own warps: "we have read the sums of this step's product".
//
// So who has waited for the operand of step s + 1 in its own tile may write the operand of step s + 2 into the others' tiles of
// step s, and the sums of step s + 1 over those of step s. No phase hears what is meant for the next one: a block tells of step
// s + 1 only when it has the operand of step s, which the block that hears it sent after its own wait for step s - 1, the phase
// before on that mbarrier. Arrivals release and waits acquire what is in shared memory, at the cluster's scope (ptx.cuh): no
// fence of global memory is needed, since nothing in global memory passes between the blocks of a cluster.
//
// All that is sent to a block, and all arrivals, belong to a step whose operand it waits for: none comes after its end.
template <class Cell> struct Cluster : Thread {
    static constexpr bool RESIDENT = false, ONE_PASS = true, OFFERED = false;
    static constexpr int OWN = UNITS * Cell::WORDS, PIECE = 16 / sizeof(WORD), PIECES = OWN / PIECE;  // of a row
    static constexpr int SENT = CLUSTER_BLOCKS * OWN < DEPTH ? CLUSTER_BLOCKS * OWN : DEPTH;         // words of a whole row
    static constexpr int BY_WARP = 32 * Cell::WORDS / PIECE;  // pieces that the pairs of a warp make
    static_assert(OWN % PIECE == 0, "whole pieces");
    WORD *tiles, *made_here;
    unsigned long long *full, *next;
    unsigned parity;  // of `next`, the mbarrier of the tile that is read next
    const int rank = kept_number(cluster_rank());

    __device__ explicit Cluster(unsigned*) {}
    static constexpr int IN_TILES = 2 * ROWS * STRIDE + ROWS * OWN;  // words
    static __device__ constexpr int words() { return IN_TILES + 16 / sizeof(WORD); }

    __device__ void begin(WORD* memory, const Cell& cell, int row) {
        tiles = memory;
        made_here = memory + 2 * ROWS * STRIDE;
        full = reinterpret_cast<unsigned long long*>(memory + IN_TILES);
        if (threadIdx.x < 2) mbarrier_init(full + threadIdx.x, CLUSTER_BLOCKS - 1 + THREADS / 32);
        begin_tiles(memory, IN_TILES, cell, row, true);
        mbarrier_fence_init();
        cluster_sync();
    }

    __device__ const WORD* fetch(const Cell&, const Step&, unsigned s, int, bool) {
        if (s > 0) mbarrier_wait(next, parity);
        return tiles + s % 2 * (ROWS * STRIDE);
    }

    template <class Made> __device__ void put(const Cell&, const Step&, unsigned, int n, int, int, const Made& made) {
        put_operand(made_here + n * Cell::WORDS, made);
    }

    __device__ void publish(unsigned s) {
        const unsigned turn = (s + 1) % 2;
        next = full + turn, parity = s / 2 % 2;
        __syncwarp();
        #pragma unroll
        for (int i = 0; i < ELEMENTS; ++i)
            #pragma unroll
            for (int j = 0; j < BY_WARP * CLUSTER_BLOCKS; j += 32) {
                const int of = j + lane(), piece = (number / 32 + i * (THREADS / 32)) * BY_WARP + of % BY_WARP;
                const int r = piece / PIECES, column = rank * OWN + piece % PIECES * PIECE;
                if (BY_WARP * CLUSTER_BLOCKS % 32 && of >= BY_WARP * CLUSTER_BLOCKS) continue;
                if (ROWS * UNITS % THREADS && r >= ROWS) continue;
                if (CLUSTER_BLOCKS * OWN > DEPTH && column >= DEPTH) continue;  // of units that there are not
                st_async(reinterpret_cast<uint4*>(tiles + (turn * ROWS + r) * STRIDE + column),
                         *reinterpret_cast<const uint4*>(made_here + piece * PIECE), next, of / BY_WARP);
            }
        if (number == 0)
            mbarrier_arrive_expect_tx(next, ROWS * SENT * sizeof(WORD));
        else if (lane() == 0)
            mbarrier_arrive(next);
        if (number < CLUSTER_BLOCKS && number != rank) mbarrier_arrive_remote(next, number);
    }

    __device__ void end() {}
};

#endif
