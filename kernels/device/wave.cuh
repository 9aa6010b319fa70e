// Two layers of a stack in one launch: the first goes ahead, the second follows a step behind on blocks of its own.
//
// Forward the lower layer is the first and gives h; backward the upper one is, and gives the gradients of its gates. A block of
// the second holds the weights between the layers beside its own, multiplies what the first made in this step with them, and so
// needs no product before the launch, nor that product's result in memory. What is given lies in the sequence's own arrays.
//
// The first never waits for the second, and a block of the second that waits knows that all blocks of the first have begun:
// all are resident, or they took their parts in the order in which they began (`turn`). So none can wait for ever.
#pragma once
#include "exchange.cuh"

constexpr int APART = 64;  // counters that one group of rows has, as in persistent.py; the second of them stands 128 bytes on

// Which part of the launch this block has, or this cluster: groups of rows, those of the first layer before those of the second.
template <class Exchange> __device__ unsigned turn(unsigned* begun) {
    if (Exchange::RESIDENT) return blockIdx.y;
    __shared__ unsigned mine;
#if defined(CLUSTER_BLOCKS)
    cluster_sync();  // others' shared memory is there once they have begun
    if (cluster_rank() == 0 && threadIdx.x == 0) {
        unsigned taken = add_release(begun, 1u);
        for (unsigned rank = 0; rank < CLUSTER_BLOCKS; ++rank) *cluster_map(&mine, rank) = taken;
        if (taken == gridDim.y - 1) add_release(begun, 0u - gridDim.y);  // all have: zero for the next launch
    }
    cluster_sync();
#else
    if (threadIdx.x == 0) {
        mine = add_release(begun, 1u);
        if (mine == gridDim.y - 1) add_release(begun, 0u - gridDim.y);
    }
    __syncthreads();
#endif
    return mine;
}

// What passes between the layers for one group of rows.
template <class Cell> struct Between {
    static constexpr int PRODUCTS = 1;
    const Cell& first;
    const bool second;  // whether this block is of the second layer
    unsigned* made;     // how often blocks of the first have made a step; the number of those of the second that leave is beside
    WORD* tile;
    Copy copy;
    Weights weights;

    __device__ Between(const Cell& first, bool second, unsigned* made) : first(first), second(second), made(made) {}
    static __device__ constexpr int words() { return ROWS * STRIDE + Weights::words(); }

    __device__ void begin(WORD* memory, const Cell& cell, const WORD* between, i64 row, int first_column, int last_column) {
        begin_tiles(tile = memory, ROWS * STRIDE, cell, 0, false);
        if (second) weights.load(memory + ROWS * STRIDE, between, row, first_column, last_column);
    }

    // What the first layer made in the same step of ROWS rows, on its way while the block has its own to do.
    __device__ void fetch(const Step& step, unsigned s, int row, bool first_pass) {
        if (!second) return;
        if (first_pass) {
            if (threadIdx.x == 0)
                while (load_acquire(made) < (s + 1) * gridDim.x) {
                }
            __syncthreads();
        }
        int rows = min(int(first.batch) - row, ROWS);
        copy.begin(tile, first.offered(step).from(row), rows, first.depth());
    }

    // The product with it; false where nothing is taken.
    __device__ bool multiply(float* sums) const {
        if (!second) return false;
        copy.end();
        __syncthreads();
        weights.multiply(tile, sums);
        return true;
    }

    __device__ void give() {
        if (second) return;
        __syncthreads();
        if (threadIdx.x == 0) add_release(made, 1u);
    }

    // The last of the second to leave puts the counters back: the first has made all steps, and nobody reads them any more.
    __device__ void end() {
        if (!second || threadIdx.x || add_release(made + APART / 2, 1u) != gridDim.x - 1) return;
        load_acquire(made + APART / 2);
        store_release(made, 0u);
        store_release(made + APART / 2, 0u);
    }
};
