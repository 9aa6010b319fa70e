// The device's arithmetic and memory intrinsics for g++, beyond what <math.h> has. Fast forms are computed exactly here.
#pragma once

template <class T> INLINE T __ldg(const T* p) { return *p; }
template <class T> INLINE T __ldcg(const T* p) { return *p; }
template <class T> INLINE T __ldca(const T* p) { return *p; }
template <class T> INLINE T __ldcs(const T* p) { return *p; }
template <class T> INLINE void __stcg(T* p, std::common_type_t<T> v) { *p = v; }
template <class T> INLINE void __stcs(T* p, std::common_type_t<T> v) { *p = v; }
template <class T> INLINE void __stwt(T* p, std::common_type_t<T> v) { *p = v; }

template <class A, class B> INLINE std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return fmin(T(a), T(b));
    else return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B> INLINE std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return fmax(T(a), T(b));
    else return T(a) < T(b) ? T(b) : T(a);
}

INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
INLINE float rsqrt(float x) { return 1.0f / sqrtf(x); }
INLINE float fdividef(float a, float b) { return a / b; }
INLINE float __fdividef(float a, float b) { return a / b; }
INLINE float __expf(float x) { return expf(x); }
INLINE float __exp10f(float x) { return powf(10.0f, x); }
INLINE float __logf(float x) { return logf(x); }
INLINE float __log2f(float x) { return log2f(x); }
INLINE float __log10f(float x) { return log10f(x); }
INLINE float __powf(float x, float y) { return powf(x, y); }
INLINE float __sinf(float x) { return sinf(x); }
INLINE float __cosf(float x) { return cosf(x); }
INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
INLINE float __frcp_rn(float x) { return 1.0f / x; }
INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
INLINE float __fadd_rn(float a, float b) { return a + b; }
INLINE float __fsub_rn(float a, float b) { return a - b; }
INLINE float __fmul_rn(float a, float b) { return a * b; }
INLINE float __fdiv_rn(float a, float b) { return a / b; }
INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
INLINE double __dadd_rn(double a, double b) { return a + b; }
INLINE double __dmul_rn(double a, double b) { return a * b; }
INLINE double __ddiv_rn(double a, double b) { return a / b; }
INLINE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

INLINE int __float_as_int(float x) { return simulator::bits<int>(x); }
INLINE unsigned __float_as_uint(float x) { return simulator::bits<unsigned>(x); }
INLINE float __int_as_float(int x) { return simulator::bits<float>(x); }
INLINE float __uint_as_float(unsigned x) { return simulator::bits<float>(x); }
INLINE long long __double_as_longlong(double x) { return simulator::bits<long long>(x); }
INLINE double __longlong_as_double(long long x) { return simulator::bits<double>(x); }
INLINE int __float2int_rn(float x) { return int(lrintf(x)); }
INLINE int __float2int_rz(float x) { return int(x); }
INLINE float __int2float_rn(int x) { return float(x); }
INLINE float __uint2float_rn(unsigned x) { return float(x); }
INLINE float __double2float_rn(double x) { return float(x); }

INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
INLINE int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
INLINE int __ffs(int x) { return __builtin_ffs(x); }
INLINE unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}
INLINE unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
INLINE int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t both = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned pick = selector >> 4 * i & 15, byte = unsigned(both >> 8 * (pick & 7) & 0xff);
        result |= (pick & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return result;
}
INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
