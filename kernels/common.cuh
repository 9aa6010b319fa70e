// What all device code shares: number types, rows of operands, activations, and how a thread finds its element.
//
// Macros say what is compiled: REAL, the type of states, sums and parameters (float, double); WORD, the type in which products
// read their operands: REAL, or, as 16 bits, unsigned short with NARROW_BFLOAT16 or NARROW_FLOAT16 defined. Gates of a unit
// stand side by side: column u * G + g holds gate g of unit u. Sizes and strides are counted in elements of the array's own
// type. A null pointer stands for what there is none of. No header is included: compiling at run time needs NVRTC alone.

#pragma once

typedef long long i64;
typedef unsigned char u8;

#if defined(NARROW_BFLOAT16)
__device__ inline float value_of(WORD x) { return __uint_as_float((unsigned)x << 16); }
__device__ inline WORD word_of(float x) {  // to the nearest, ties to even
    unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#elif defined(NARROW_FLOAT16) && defined(FASTLSTM_HOST)
inline float value_of(WORD x) { return __half2float(__ushort_as_half(x)); }
inline WORD word_of(float x) { return __half_as_ushort(__float2half(x)); }
#elif defined(NARROW_FLOAT16)
__device__ inline float value_of(WORD x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ inline WORD word_of(float x) {
    WORD y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
__device__ inline WORD word_of(REAL x) { return x; }
#endif
__device__ inline REAL value_of(REAL x) { return x; }

// The number of this thread in a one-dimensional launch.
__device__ inline i64 element() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ inline REAL sigmoid(REAL x) { return REAL(1) / (REAL(1) + exp(-x)); }

// Whether row `b` has ended before step `time`, of sequences that may have lengths.
__device__ inline bool has_ended(const i64* lengths, i64 b, i64 time) { return lengths && time >= lengths[b]; }

// What a row's state or its gradient counts as: nothing where the row is marked.
__device__ inline REAL unless_marked(const u8* marks, i64 b, REAL value) { return marks && marks[b] ? REAL(0) : value; }
