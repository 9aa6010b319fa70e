// What all device code shares: number types, rows of operands, activations, and how a thread finds its element.
//
// Macros say what is compiled: REAL, the type of states, sums and parameters (float, double); WORD, the type in which products
// read their operands: REAL, or, as 16 bits, unsigned short with NARROW_BFLOAT16 or NARROW_FLOAT16 defined. Gates of a unit
// stand side by side: column u * G + g holds gate g of unit u. Sizes and strides are counted in elements of the array's own
// type. A null pointer stands for what there is none of. No header is included: compiling at run time needs NVRTC alone.

#pragma once
#include "ptx.cuh"

typedef long long i64;
typedef unsigned char u8;

#if defined(NARROW_BFLOAT16)
__device__ inline float value_of(WORD x) { return __uint_as_float((unsigned)x << 16); }
__device__ inline WORD word_of(float x) { return to_bfloat16(x); }
#elif defined(NARROW_FLOAT16)
__device__ inline float value_of(WORD x) { return of_float16(x); }
__device__ inline WORD word_of(float x) { return to_float16(x); }
#else
__device__ inline WORD word_of(REAL x) { return x; }
#endif
__device__ inline REAL value_of(REAL x) { return x; }

// COUNT neighbours in memory, read and written at once where they are 4, 8 or 16 bytes; their address is a multiple of that.
template <int COUNT, class T> struct alignas(COUNT * sizeof(T)) Neighbours { T values[COUNT]; };
template <int COUNT> constexpr bool AT_ONCE = COUNT == 2 || COUNT == 4;
template <int COUNT, class T> __device__ inline void load(const T* from, T to[COUNT]) {
    if constexpr (AT_ONCE<COUNT>) {
        const auto all = *reinterpret_cast<const Neighbours<COUNT, T>*>(from);
        #pragma unroll
        for (int k = 0; k < COUNT; ++k) to[k] = all.values[k];
    } else {
        #pragma unroll
        for (int k = 0; k < COUNT; ++k) to[k] = from[k];
    }
}
template <int COUNT, class T> __device__ inline void store(T* to, const T from[COUNT]) {
    if constexpr (AT_ONCE<COUNT>) {
        Neighbours<COUNT, T> all;
        #pragma unroll
        for (int k = 0; k < COUNT; ++k) all.values[k] = from[k];
        *reinterpret_cast<Neighbours<COUNT, T>*>(to) = all;
    } else {
        #pragma unroll
        for (int k = 0; k < COUNT; ++k) to[k] = from[k];
    }
}

// An array by rows. The address of a row is its number times its bytes, added to 64 bits in one instruction.
template <class T> struct Rows {
    T* first;
    unsigned bytes;  // from row to row
    __device__ T* at(unsigned row, int column) const { return (T*)((const char*)first + (unsigned long long)row * bytes) + column; }
    __device__ Rows<const T> from(unsigned row) const { return {at(row, 0), bytes}; }
};
template <class T> __device__ inline Rows<T> rows(T* first, i64 elements) { return {first, unsigned(elements * sizeof(T))}; }

// The number of this thread in a one-dimensional launch.
__device__ inline i64 element() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }

// Activations, in double as precise as CUDA's. In float they are made of the hardware's exponential (2 ulp) and reciprocal
// (1 ulp), without the branches of the precise functions. Sigmoid is off by 1.5e-7 at most, and by 8e-7 of itself where
// |x| < 10; tanh by 3e-7. Near zero, where that would be much of a small tanh, a polynomial takes its place, so that tanh is
// off by 5e-7 of itself everywhere; but where words have 16 bits, whose rounding is larger for all |tanh| > 2^-13.
// tests/cuda/test_numbers.py holds these bounds against instructions that are off by as much as they may be.
__device__ inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
__device__ inline double tanh_of(double x) { return tanh(x); }
__device__ inline float sigmoid(float x) { return rcp_approx(1.0f + ex2_approx(x * -1.44269504f)); }
__device__ inline float tanh_of(float x) {
    float far = 1.0f - 2.0f * rcp_approx(1.0f + ex2_approx(x * 2.88539008f));
#if defined(NARROW_BFLOAT16) || defined(NARROW_FLOAT16)
    return far;
#else
    float square = x * x;
    float near = ((0.01643756f * square - 0.0526718f) * square + 0.13320725f) * square - 0.33332947f;
    return square < 0.3f ? x + x * square * near : far;
#endif
}

// Whether row `b` has ended before step `time`, of sequences that may have lengths.
__device__ inline bool has_ended(const i64* lengths, i64 b, i64 time) { return lengths && time >= lengths[b]; }

// What a row's state or its gradient counts as: nothing where the row is marked.
__device__ inline REAL unless_marked(const u8* marks, i64 b, REAL value) { return marks && marks[b] ? REAL(0) : value; }
