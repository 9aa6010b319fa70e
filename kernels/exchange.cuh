// How operands come from the blocks that made them: through global memory, and a counter at which blocks meet.
//
//     begin(memory, cell, first_row)             before the first step
//     fetch(cell, step, row, first)              the tile of ROWS rows from `row` on in shared memory, for all threads
//     put(r, u, words)                           what unit u of the block made for row r of the pass
//     publish(s), end()                          after each step but the last, and after that
#pragma once
#include "persistent.cuh"

// Rows of an operand to a tile in shared memory, as they come: 16 bytes at a time, or 4 where rows are not aligned to 16. Words
// beyond the rows and the depth stay what they are.
__device__ inline void copy_rows(WORD* tile, const WORD* from, i64 from_row, i64 rows, i64 depth) {
    const int bytes = from_row * sizeof(WORD) % 16 ? 4 : 16, each = bytes / sizeof(WORD);
    const int per_row = (depth + each - 1) / each;  // narrow rows are whole pieces, with zeros at their ends
    for (int n = threadIdx.x; n < rows * per_row; n += THREADS) {
        WORD* to = tile + n / per_row * STRIDE + n % per_row * each;
        const WORD* source = from + n / per_row * from_row + n % per_row * each;
        if (bytes == 16)
            cp_async_16(to, source);
        else
            cp_async_4(to, source);
    }
    cp_async_commit();
    cp_async_wait<0>();
#if defined(PRODUCT_TF32)
    for (int n = threadIdx.x; n < rows * per_row; n += THREADS)  // each thread rounds what it brought
        for (int k = 0; k < each; ++k) {
            float* word = tile + n / per_row * STRIDE + n % per_row * each + k;
            *word = __uint_as_float(to_tf32(*word));
        }
#endif
}

// Operands are the sequence's own arrays in global memory, where cells write them anyway. The blocks of the same rows count their
// arrivals; all of them must be resident, or they wait for ever: persistent.py sees to it.
struct Grid {
    unsigned* arrived;  // zero before and after a launch; the number of those that leave stands 128 bytes on
    unsigned met = 0;   // arrivals that stand for all steps so far
    WORD* tile;
    i64 rows;  // of the batch from the block's first row on

    __device__ explicit Grid(unsigned* counters) : arrived(counters + blockIdx.y * 64) {}
    static __device__ constexpr int tiles() { return 1; }

    template <class Cell> __device__ void begin(WORD* memory, const Cell& cell, i64 first_row) {
        tile = memory;
        for (int n = threadIdx.x; n < ROWS * STRIDE; n += THREADS) tile[n] = word_of(0);
        __syncthreads();
    }

    template <class Cell> __device__ const WORD* fetch(const Cell& cell, const Step& step, i64 row, bool first) {
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

    template <class Words> __device__ void put(int, int, const Words&) {}

    __device__ void publish(i64) {
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
