// A recurrence in one launch: the recurrent weights lie in registers for the whole sequence, or, as far as these do not reach, in
// shared memory, and only operands travel.
//
// A step multiplies the operand of the step before ([rows, DEPTH]: h forward, the gates' gradients backward) with the weights,
// then each unit's pointwise part makes the next operand. Blocks share the work twice: blockIdx.y takes rows of the batch,
// blockIdx.x takes UNITS units with all their columns of the weights. Blocks of the same rows need each other's operands, so
// they meet once in every step; blocks of different rows never do.
//
//     recur(cell, exchange, neighbour)    the loop over steps: read, fetch, multiply, pointwise part, publish
//     Weights                             the product: its part of the weights, and how a warp multiplies with it
//     Grid, Cluster, Alone (exchange.cuh) how operands come from the other blocks
//     Apart, Between (wave.cuh)           what a layer takes from its neighbour in the same launch and gives it
//     Cell (cells.cuh)                    what a unit reads, computes and writes in a step; all that a new cell needs
//
// A tile of macros says how a block is made, chosen in persistent.py:
//
//     DEPTH           words of an operand's row, padded with zeros: a multiple of 32 * DEPTH_WARPS
//     ROWS            rows that are multiplied at a time; a block takes `passes` times as many, one after another in each step
//     COLUMN_WARPS, DEPTH_WARPS    the block's warps, by columns of the weights and by parts of the depth
//     WARP_COLUMNS    columns of a warp
//     HELD            words of a warp's part of the depth whose weights registers hold, WARP_COLUMNS * HELD * sizeof(WORD) / 128 of
//                     them; those of the rest lie in shared memory, each lane's own, so that they are its affair alone
//     UNITS           units of a block, with at most COLUMN_WARPS * WARP_COLUMNS columns
//     PRODUCT_TF32, PRODUCT_SPLIT, NARROW_BFLOAT16, NARROW_FLOAT16: by tensor cores; else WORD is float and products are fused
//                     multiply-adds
#pragma once
#include "common.cuh"
#include "ptx.cuh"

constexpr int THREADS = 32 * COLUMN_WARPS * DEPTH_WARPS;
constexpr int COLUMNS = COLUMN_WARPS * WARP_COLUMNS;
constexpr int STRIDE = DEPTH + 16 / sizeof(WORD);  // words from row to row of the tile: 16 bytes on, so that no bank is hit twice
constexpr int SUMS = COLUMNS + 4;                  // the same for sums
constexpr int SLICE = DEPTH / DEPTH_WARPS;         // of the depth, for one warp
constexpr int ELEMENTS = (ROWS * UNITS + THREADS - 1) / THREADS;  // (row, unit) pairs of a thread in a pass

// Which thread of its block this is, read once.
struct Thread {
    const int number = kept_number(threadIdx.x);
    __device__ int lane() const { return number % 32; }
    __device__ int column_warp() const { return number / 32 % COLUMN_WARPS; }
    __device__ int depth_warp() const { return number / 32 / COLUMN_WARPS; }
};

// A step of a sequence: its number in the order of time, the places of states before and after it, the step that backward comes
// from, and forward the slot of c after it, one of few that take turns. Not `linked`: no operand reaches it.
struct Step {
    int t, before, after, next, slot;
    bool linked;
};

// What a unit carries from step to step: float number k, in shared memory.
struct State {
    float* first;
    int apart;
    __device__ float& operator[](int k) const { return first[k * apart]; }
};

#if defined(PRODUCT_TF32) || defined(PRODUCT_SPLIT) || defined(NARROW_BFLOAT16) || defined(NARROW_FLOAT16)

// By tensor cores, D[16 columns, 8 rows] += A[16 columns, 32 bytes of depth] B[32 bytes of depth, 8 rows]: the weights are A and
// stay in registers as fragments, the operand is B. In bytes, fragments of 16 and of 32 bits are the same (ptx.cuh), so one
// code serves all: a lane holds the 4 bytes at 4 * (lane % 4) of its row's first and second 16.
struct Weights : Thread {
    static constexpr int TILES = WARP_COLUMNS / 16, STEPS = SLICE * sizeof(WORD) / 32, KEPT = HELD * sizeof(WORD) / 32;
    static_assert(WARP_COLUMNS % 16 == 0 && ROWS % 8 == 0 && STEPS % 2 == 0 && KEPT % 2 == 0, "whole fragments, two at a time");
    unsigned a[TILES][KEPT][4];
    uint4* rest;  // [TILES][STEPS - KEPT] of this lane, those of a block's threads side by side

    static __device__ constexpr int words() { return TILES * (STEPS - KEPT) * THREADS * 16 / sizeof(WORD); }

    // packed [columns, row]: columns side by side as products have them; those from `last` on are none of this block's.
    __device__ void load(WORD* memory, const WORD* packed, i64 row, int first, int last) {
        rest = reinterpret_cast<uint4*>(memory) + number;
        auto of = [&](int i, int s, int part) {
            int column = first + column_warp() * WARP_COLUMNS + i * 16 + part % 2 * 8 + lane() / 4;
            int k = depth_warp() * SLICE + (s * 32 + part / 2 * 16 + lane() % 4 * 4) / sizeof(WORD);
            return column < last && k < row ? fragment(packed + column * row + k) : 0;
        };
        #pragma unroll
        for (int i = 0; i < TILES; ++i) {
            #pragma unroll
            for (int s = 0; s < KEPT; ++s)
                #pragma unroll
                for (int part = 0; part < 4; ++part) a[i][s][part] = of(i, s, part);
            #pragma unroll 1
            for (int s = KEPT; s < STEPS; ++s)
                rest[(i * (STEPS - KEPT) + s - KEPT) * THREADS] = make_uint4(of(i, s, 0), of(i, s, 1), of(i, s, 2), of(i, s, 3));
        }
    }

    // sums[depth_warp, row, column] of ROWS rows.
    __device__ void multiply(const WORD* operand, float* sums) const {
        sums += depth_warp() * ROWS * SUMS + column_warp() * WARP_COLUMNS;
        #pragma unroll 1
        for (int row = 0; row < ROWS; row += 8) {
            float d[TILES][2][PARTS][4] = {};  // two sums each: the products of one wait for each other
            const WORD* from = operand + (row + lane() % 8) * STRIDE + depth_warp() * SLICE + lane() / 8 * (16 / sizeof(WORD));
            #pragma unroll
            for (int s = 0; s < KEPT; s += 2) {
                const Parts b(from + s * 32 / sizeof(WORD));
                #pragma unroll
                for (int i = 0; i < TILES; ++i)
                    #pragma unroll
                    for (int half = 0; half < 2; ++half) product(d[i][half], a[i][s + half], b, half);
            }
            #pragma unroll 1
            for (int s = KEPT; s < STEPS; s += 2) {
                const Parts b(from + s * 32 / sizeof(WORD));
                #pragma unroll
                for (int i = 0; i < TILES; ++i)
                    #pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const uint4 w = rest[(i * (STEPS - KEPT) + s + half - KEPT) * THREADS];
                        const unsigned read[4] = {w.x, w.y, w.z, w.w};
                        product(d[i][half], read, b, half);
                    }
            }
            float* to = sums + (row + lane() % 4 * 2) * SUMS + lane() / 4;
            #pragma unroll
            for (int i = 0; i < TILES; ++i)
                #pragma unroll
                for (int part = 0; part < 4; ++part)
                    to[part % 2 * SUMS + i * 16 + part / 2 * 8] = total(d[i], part);
        }
    }

#if defined(PRODUCT_SPLIT)
    // float32 as a sum of two numbers of tf32, in three products with float32 sums: high by high, and in sums of their own, since
    // they are 2^-10 of it, low by high and high by low. Weights are cut, which takes least, and were rounded before, to 22 binary
    // digits, of which `high` and `low` have 11 each; operands are rounded, which leaves 12 digits for `low`, of which tensor cores
    // read 11. So a product is off by 2^-22 of itself for its weight, 2^-23 for its operand and 2^-21 for low by low, which is left
    // out: by 9e-7 at most, to either side.
    static constexpr int PARTS = 2;
    struct Parts {
        unsigned high[4], low[4];
        explicit __device__ Parts(const WORD* rows) {
            unsigned words[4];
            ldmatrix_x4(words, rows);
            #pragma unroll
            for (int k = 0; k < 4; ++k) {
                high[k] = (words[k] + 0x1000u) & 0xffffe000u;  // of a NaN `low` remains
                low[k] = __float_as_uint(__uint_as_float(words[k]) - __uint_as_float(high[k]));
            }
        }
        explicit __device__ Parts(const unsigned weights[4]) {
            #pragma unroll
            for (int k = 0; k < 4; ++k) {
                const unsigned word = kept_number(weights[k]);  // or all parts of all weights would be made before the first step
                high[k] = word & 0xffffe000u;
                low[k] = __float_as_uint(__uint_as_float(word) - __uint_as_float(high[k]));
            }
        }
    };
    static __device__ unsigned fragment(const WORD* word) {
        const unsigned bits = __float_as_uint(*word);
        return *word == *word ? bits + 2 & ~3u : bits;
    }
    static __device__ void product(float d[PARTS][4], const unsigned a[4], const Parts& b, int half) {
        const Parts w(a);
        mma_m16n8k8_tf32(d[1], w.low, b.high + 2 * half, d[1]);
        mma_m16n8k8_tf32(d[0], w.high, b.high + 2 * half, d[0]);
        mma_m16n8k8_tf32(d[1], w.high, b.low + 2 * half, d[1]);
    }
    static __device__ float total(const float d[2][PARTS][4], int k) { return d[0][0][k] + d[1][0][k] + (d[0][1][k] + d[1][1][k]); }
#else
    static constexpr int PARTS = 1;
    struct Parts {
        unsigned words[4];
        explicit __device__ Parts(const WORD* rows) { ldmatrix_x4(words, rows); }
    };
    static __device__ void product(float d[PARTS][4], const unsigned a[4], const Parts& b, int half) {
#if defined(PRODUCT_TF32)
        mma_m16n8k8_tf32(d[0], a, b.words + 2 * half, d[0]);
#elif defined(NARROW_BFLOAT16)
        mma_m16n8k16_bf16(d[0], a, b.words + 2 * half, d[0]);
#else
        mma_m16n8k16_f16(d[0], a, b.words + 2 * half, d[0]);
#endif
    }
    static __device__ float total(const float d[2][PARTS][4], int k) { return d[0][0][k] + d[1][0][k]; }
#if defined(PRODUCT_TF32)
    static __device__ unsigned fragment(const WORD* word) { return to_tf32(*word); }
#else
    static __device__ unsigned fragment(const WORD* words) { return *reinterpret_cast<const unsigned*>(words); }
#endif
#endif
};

#else

// By multiply-adds: the lanes of a warp split its slice of the depth, so that a row is read from shared memory once by a warp, all
// lanes side by side; each lane has sums of its own for 32 (row, column) pairs, which the warp adds up in the end.
struct Weights : Thread {
    static constexpr int OWN = SLICE / 32, WIDE = OWN % 4 == 0 ? 4 : OWN % 2 == 0 ? 2 : 1, TOGETHER = 32 / WARP_COLUMNS;
    static constexpr int KEPT = HELD / 32;
    static_assert(32 % WARP_COLUMNS == 0 && ROWS % TOGETHER == 0 && KEPT % WIDE == 0, "sums for a whole warp, whole reads");
    float w[WARP_COLUMNS][KEPT];
    float* rest;  // [WARP_COLUMNS][OWN - KEPT] of this lane, WIDE at a time, those of a block's threads side by side

    static __device__ constexpr int words() { return WARP_COLUMNS * (OWN - KEPT) * THREADS; }

    __device__ void load(WORD* memory, const WORD* packed, i64 row, int first, int last) {
        rest = memory + number * WIDE;
        auto of = [&](int c, int i) {
            int column = first + column_warp() * WARP_COLUMNS + c, k = depth_warp() * SLICE + place(i);
            return column < last && k < row ? packed[(i64)column * row + k] : 0;
        };
        #pragma unroll
        for (int c = 0; c < WARP_COLUMNS; ++c) {
            #pragma unroll
            for (int i = 0; i < KEPT; ++i) w[c][i] = of(c, i);
            #pragma unroll 1
            for (int i = KEPT; i < OWN; ++i) rest[rest_at(c, i) + i % WIDE] = of(c, i);
        }
    }

    static __device__ int rest_at(int c, int i) { return (c * (OWN - KEPT) + i - KEPT) / WIDE * WIDE * THREADS; }

    __device__ void multiply(const WORD* operand, float* sums) const {
        sums += depth_warp() * ROWS * SUMS + column_warp() * WARP_COLUMNS + lane() % WARP_COLUMNS;
        #pragma unroll 1
        for (int row = 0; row < ROWS; row += TOGETHER) {
            float total[32] = {};
            const WORD* from = operand + row * STRIDE + depth_warp() * SLICE + place(0);
            #pragma unroll
            for (int i = 0; i < KEPT; i += WIDE)
                #pragma unroll
                for (int r = 0; r < TOGETHER; ++r) {
                    float x[WIDE];
                    read(from + r * STRIDE + i * 32, x);
                    #pragma unroll
                    for (int k = 0; k < WIDE; ++k)
                        #pragma unroll
                        for (int c = 0; c < WARP_COLUMNS; ++c) total[r * WARP_COLUMNS + c] += w[c][i + k] * x[k];
                }
            #pragma unroll 1
            for (int i = KEPT; i < OWN; i += WIDE) {
                float x[TOGETHER][WIDE];
                #pragma unroll
                for (int r = 0; r < TOGETHER; ++r) read(from + r * STRIDE + i * 32, x[r]);
                #pragma unroll
                for (int c = 0; c < WARP_COLUMNS; ++c) {
                    float v[WIDE];
                    read(rest + rest_at(c, i), v);
                    #pragma unroll
                    for (int r = 0; r < TOGETHER; ++r)
                        #pragma unroll
                        for (int k = 0; k < WIDE; ++k) total[r * WARP_COLUMNS + c] += v[k] * x[r][k];
                }
            }
            sums[(row + lane() / WARP_COLUMNS) * SUMS] = over_lanes(total);
        }
    }

    // Of a lane's i-th weight: where in the slice. WIDE neighbours make one read.
    __device__ int place(int i) const { return (i / WIDE * 32 + lane()) * WIDE + i % WIDE; }

    static __device__ void read(const float* from, float x[WIDE]) {
        if constexpr (WIDE == 4) {
            float4 v = *reinterpret_cast<const float4*>(from);
            x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
        } else if constexpr (WIDE == 2) {
            float2 v = *reinterpret_cast<const float2*>(from);
            x[0] = v.x, x[1] = v.y;
        } else {
            x[0] = *from;
        }
    }

    // Lane l gets the sum over all lanes of x[l]: in each of five rounds lanes give away the half that they are not to have.
    template <int HALF = 16> __device__ float over_lanes(float x[2 * HALF]) const {
        bool upper = lane() & HALF;
        float sum[HALF];
        #pragma unroll
        for (int i = 0; i < HALF; ++i) {
            float low = x[i], high = x[i + HALF];
            sum[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, HALF);
        }
        if constexpr (HALF > 1)
            return over_lanes<HALF / 2>(sum);
        else
            return sum[0];
    }
};

#endif

// A layer that takes nothing from another in its launch and gives nothing: what recur() asks of a neighbour (wave.cuh).
struct Apart {
    static constexpr int PRODUCTS = 0;
    static __device__ constexpr int words() { return 0; }
    template <class Cell> __device__ void begin(WORD*, const Cell&, const WORD*, i64, int, int) {}
    __device__ void fetch(const Step&, unsigned, int, bool) {}
    __device__ bool multiply(float*) const { return false; }
    __device__ void give() {}
    __device__ void end() {}
};

// All steps of a cell on this block's units and on the rows of group number `group`.
//
// What others wait for comes first: as soon as the last operand of a step is made it is published, and only then are states and
// activations stored. What does not depend on others is read before they are waited for.
template <class Cell, class Exchange, class Neighbour>
__device__ void recur(const Cell& cell, Exchange& exchange, Neighbour& neighbour, const WORD* packed, i64 packed_row,
                      const WORD* between, int group, int all_passes) {
    constexpr int PRODUCT = DEPTH_WARPS * ROWS * SUMS;
    extern __shared__ __align__(16) WORD memory[];
    const int passes = Exchange::ONE_PASS ? 1 : all_passes;
    WORD* beside = memory + Exchange::words();
    float* sums = reinterpret_cast<float*>(beside + Neighbour::words() + Weights::words());
    float* states = sums + (1 + Neighbour::PRODUCTS) * PRODUCT;  // [Cell::STATES][passes * ROWS * UNITS]
    const int first_row = group * (ROWS * passes), first_unit = blockIdx.x * UNITS;
    const int last_unit = first_unit + UNITS < cell.hidden ? first_unit + UNITS : cell.hidden;
    const int first_column = first_unit * Cell::COLUMNS_OF_UNIT, last_column = last_unit * Cell::COLUMNS_OF_UNIT;

    Weights weights;
    // The (row, unit) pairs of a thread: neighbours have neighbouring units. `here(i, n, row, unit)` for those that there are,
    // the i-th of the thread and the n-th of the pass.
    auto each = [&](int pass, auto here) {
        #pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) {
            const int n = weights.number + i * THREADS;
            const int row = first_row + pass * ROWS + n / UNITS, unit = first_unit + n % UNITS;
            if (n < ROWS * UNITS && row < cell.batch && unit < last_unit) here(i, n, row, unit);
        }
    };
    auto state_of = [&](int pass, int n) { return State{states + pass * (ROWS * UNITS) + n, passes * ROWS * UNITS}; };
    auto add_up = [&](const float* product, int n, float total[]) {
        constexpr int COLUMNS_OF_UNIT = Cell::COLUMNS_OF_UNIT;
        product += n / UNITS * SUMS + n % UNITS * COLUMNS_OF_UNIT;
        #pragma unroll
        for (int part = 0; part < DEPTH_WARPS; ++part) {
            float sum[COLUMNS_OF_UNIT];
            load<COLUMNS_OF_UNIT>(product + part * (ROWS * SUMS), sum);
            #pragma unroll
            for (int c = 0; c < COLUMNS_OF_UNIT; ++c) total[c] = part ? total[c] + sum[c] : sum[c];
        }
    };

    weights.load(beside + Neighbour::words(), packed, packed_row, first_column, last_column);
    neighbour.begin(beside, cell, between, packed_row, first_column, last_column);
    exchange.begin(memory, cell, first_row);
    for (int pass = 0; pass < passes; ++pass)
        each(pass, [&](int, int n, int row, int unit) { cell.begin(row, unit, state_of(pass, n)); });

    Step step = cell.first();
    for (unsigned s = 0; s < unsigned(cell.steps); ++s, cell.advance(step)) {
        for (int pass = 0; pass < passes; ++pass) {
            typename Cell::Read read[ELEMENTS];
            typename Cell::Made made[ELEMENTS];
            each(pass, [&](int i, int n, int row, int unit) { cell.read(step, row, unit, state_of(pass, n), read[i]); });
            const int rows_from = first_row + pass * ROWS;
            neighbour.fetch(step, s, rows_from, pass == 0);
            if (step.linked) {
                const WORD* operand = exchange.fetch(cell, step, s, rows_from, pass == 0);
                weights.multiply(operand, sums);
            }
            const bool taken = neighbour.multiply(sums + PRODUCT);
            __syncthreads();
            each(pass, [&](int i, int n, int row, int unit) {
                float own[Cell::COLUMNS_OF_UNIT], theirs[Cell::COLUMNS_OF_UNIT];
                add_up(sums, n, own);
                if (!step.linked)
                    for (float& sum : own) sum = 0;  // there was no product
                if (taken) {
                    add_up(sums + PRODUCT, n, theirs);
                    cell.take(read[i], theirs);
                }
                cell.step(step, read[i], own, made[i]);
                exchange.put(cell, step, s, n, row, unit, made[i]);
            });
            if (pass + 1 == passes && s + 1 < unsigned(cell.steps)) exchange.publish(s);
            each(pass, [&](int i, int n, int row, int unit) {
                cell.template store<Exchange::OFFERED>(step, row, unit, made[i], state_of(pass, n));
            });
        }
        neighbour.give();
    }
    for (int pass = 0; pass < passes; ++pass)
        each(pass, [&](int, int n, int row, int unit) { cell.end(row, unit, state_of(pass, n)); });
    exchange.end();
    neighbour.end();
}
