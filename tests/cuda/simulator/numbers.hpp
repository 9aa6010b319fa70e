// CUDA's 16-bit numbers for g++: __half and __nv_bfloat16, rounded to nearest even bit for bit as the device rounds.
//
// Knows nothing of threads. A number is widened exactly to float, worked on there, and rounded back once; for one addition,
// multiplication or division that gives the correctly rounded result, since float has more than twice their digits.
#pragma once
#include <stdint.h>

namespace simulator {

template <class To, class From> inline To bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "bits() changes the type, not the size");
    To result;
    __builtin_memcpy(&result, &value, sizeof result);
    return result;
}

// To float, the last bit set where anything was cut off, so that rounding again to fewer digits rounds the double itself.
inline float to_odd(double value) {
    float nearest = static_cast<float>(value);
    if (nearest == value || value != value) return nearest;
    uint32_t pattern = bits<uint32_t>(nearest);
    if (__builtin_fabs(nearest) > __builtin_fabs(value)) --pattern;  // it was rounded away from zero
    return bits<float>(pattern | 1);
}

inline uint16_t bfloat16_of(float value) {
    uint32_t pattern = bits<uint32_t>(value);
    if ((pattern & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((pattern + 0x7fffu + (pattern >> 16 & 1)) >> 16);
}

inline float of_bfloat16(uint16_t pattern) { return bits<float>(static_cast<uint32_t>(pattern) << 16); }

inline uint16_t half_of(float value) {
    uint32_t pattern = bits<uint32_t>(value), magnitude = pattern & 0x7fffffffu;
    uint16_t sign = static_cast<uint16_t>(pattern >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and more round to infinity
    if (magnitude < 0x38800000u) {                       // below 2^-14: an addition aligns and rounds to multiples of 2^-24
        return sign | static_cast<uint16_t>(bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u);
    }
    return sign | static_cast<uint16_t>((magnitude + 0xfffu + (magnitude >> 13 & 1) - 0x38000000u) >> 13);
}

inline float of_half(uint16_t pattern) {
    uint32_t magnitude = pattern & 0x7fffu, sign = (pattern & 0x8000u) << 16;
    if (magnitude >= 0x7c00u) return bits<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    float value = bits<float>(magnitude << 13) * 0x1p112f;  // moves the exponent, subnormal numbers too
    return bits<float>(sign | bits<uint32_t>(value));
}

// Numbers too small for a full set of digits count as zero, as -ftz=true has it.
inline float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }

// The float furthest from `exact` of those within so many units in its last place; above or below as bits of `seed` have it.
inline float off(double exact, int units, float seed) {
    float nearest = static_cast<float>(exact);
    if (!(__builtin_fabsf(nearest) < __builtin_inff()) || __builtin_fabsf(nearest) < 0x1p-126f) return flushed(nearest);
    int exponent;
    __builtin_frexp(exact, &exponent);
    double most = __builtin_ldexp(units, exponent - 24);
    bool above = bits<uint32_t>(seed) * 0x9e3779b1u >> 31;
    float result = static_cast<float>(above ? exact + most : exact - most);
    if (__builtin_fabs(result - exact) > most) result = __builtin_nextafterf(result, nearest);
    return result;
}

}  // namespace simulator

#define FASTLSTM_NUMBER(Name, Pair, narrow, widen)                                                                    \
    struct alignas(2) Name {                                                                                          \
        uint16_t __x;                                                                                                 \
        Name() = default;                                                                                             \
        Name(float value) : __x(simulator::narrow(value)) {}                                                          \
        Name(double value) : __x(simulator::narrow(simulator::to_odd(value))) {}                                      \
        Name(int value) : Name(static_cast<double>(value)) {}                                                         \
        Name(unsigned value) : Name(static_cast<double>(value)) {}                                                    \
        operator float() const { return simulator::widen(__x); }                                                      \
        Name& operator+=(Name other) { return *this = Name(float(*this) + float(other)); }                            \
        Name& operator-=(Name other) { return *this = Name(float(*this) - float(other)); }                            \
        Name& operator*=(Name other) { return *this = Name(float(*this) * float(other)); }                            \
        Name& operator/=(Name other) { return *this = Name(float(*this) / float(other)); }                            \
    };                                                                                                                \
    inline Name operator+(Name a, Name b) { return a += b; }                                                          \
    inline Name operator-(Name a, Name b) { return a -= b; }                                                          \
    inline Name operator*(Name a, Name b) { return a *= b; }                                                          \
    inline Name operator/(Name a, Name b) { return a /= b; }                                                          \
    inline Name operator-(Name a) { return Name(-float(a)); }                                                         \
    struct alignas(4) Pair {                                                                                          \
        Name x, y;                                                                                                    \
    };

FASTLSTM_NUMBER(__half, __half2, half_of, of_half)
FASTLSTM_NUMBER(__nv_bfloat16, __nv_bfloat162, bfloat16_of, of_bfloat16)
#undef FASTLSTM_NUMBER

using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline __half __double2half(double value) { return value; }
inline float __half2float(__half value) { return value; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float __low2float(__half2 pair) { return pair.x; }
inline float __high2float(__half2 pair) { return pair.y; }
inline __half __ushort_as_half(uint16_t pattern) { return simulator::bits<__half>(pattern); }
inline uint16_t __half_as_ushort(__half value) { return value.__x; }

inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline __nv_bfloat16 __double2bfloat16(double value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float __low2float(__nv_bfloat162 pair) { return pair.x; }
inline float __high2float(__nv_bfloat162 pair) { return pair.y; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t pattern) { return simulator::bits<__nv_bfloat16>(pattern); }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) { return value.__x; }
