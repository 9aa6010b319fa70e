// What a kernel sees of CUDA when g++ compiles it for the simulator: qualifiers, indices, barriers, warp functions, atomics.
//
// Declarations and thin wrappers only: what they do is in schedule.cpp, memory.cpp and operations.cpp, which are compiled
// apart and without instrumentation. `__global__`, `__shared__`, `__launch_bounds__` and `__cluster_dims__` are no macros
// here: simulator.py finds and replaces them in the preprocessed text. Wrappers are inlined, so that an access or a
// barrier belongs to the kernel's own line.
#pragma once
#include <math.h>
#include <stdint.h>

#include <type_traits>
#include <utility>

#include "numbers.hpp"

#define __device__
#define __host__
#define __constant__ static
#define __managed__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define INLINE __attribute__((always_inline)) inline

#define FASTLSTM_VECTOR(T, name, alignment)                                                    \
    struct alignas(alignment / 2) name##2 { T x, y; };                                         \
    struct name##3 { T x, y, z; };                                                             \
    struct alignas(alignment) name##4 { T x, y, z, w; };                                       \
    INLINE name##2 make_##name##2(T x, T y) { return {x, y}; }                                 \
    INLINE name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                         \
    INLINE name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }                 \
    template <> struct simulator::Element<name##2> { using type = T; };                        \
    template <> struct simulator::Element<name##3> { using type = T; };                        \
    template <> struct simulator::Element<name##4> { using type = T; };

namespace simulator {
template <class T> struct Element { using type = T; };
template <> struct Element<__half2> { using type = __half; };
template <> struct Element<__nv_bfloat162> { using type = __nv_bfloat16; };
}  // namespace simulator
FASTLSTM_VECTOR(float, float, 16)
FASTLSTM_VECTOR(double, double, 16)
FASTLSTM_VECTOR(int, int, 16)
FASTLSTM_VECTOR(unsigned, uint, 16)
FASTLSTM_VECTOR(long long, longlong, 16)
FASTLSTM_VECTOR(unsigned long long, ulonglong, 16)
FASTLSTM_VECTOR(short, short, 8)
FASTLSTM_VECTOR(unsigned short, ushort, 8)
FASTLSTM_VECTOR(signed char, char, 4)
FASTLSTM_VECTOR(unsigned char, uchar, 4)
#undef FASTLSTM_VECTOR

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simulator {

// The line of a barrier or of a warp function; as a default argument it is the caller's.
struct Where {
    const char* file;
    int line;
};
#define HERE simulator::Where where = {__builtin_FILE(), __builtin_LINE()}

// A `__shared__` declaration; each block of a launch has its own copy at the same offset.
struct Variable {
    uint32_t size, alignment, element, granule;
    uint64_t launch;
    uint32_t offset;
};

uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
uint3 block_size() __attribute__((const));
uint3 grid_size() __attribute__((const));
void* shared_variable(Variable*, const char* name);
void* dynamic_shared(uint32_t element);
void* map_shared(const void* mine, unsigned rank);

enum class Vote { SYNC, COUNT, AND, OR };
int block_barrier(Vote, bool, Where);
void cluster_barrier(Where);
void grid_barrier(Where);
unsigned rank_in_cluster();
unsigned size_of_cluster();

void warp_barrier(unsigned mask, Where);
uint64_t shuffle(unsigned mask, uint64_t value, int source, Where);
unsigned ballot(unsigned mask, bool, Where);
enum class Reduction { ADD, MIN, MAX, AND, OR, XOR };
uint32_t reduce(unsigned mask, Reduction, uint32_t value, bool is_signed, Where);
unsigned active_lanes();

enum class Order { RELAXED, ACQUIRE, RELEASE };
void atomic_read(const void*, void* value, unsigned size, Order);
void atomic_write(void*, const void* value, unsigned size, Order);
void atomic_update(void*, const void* value, unsigned size, bool changed, Order);
void fence();
void pause();
long long ticks();
[[noreturn]] void trap(const char* why, Where);
void* copy_bytes(void* to, const void* from, size_t);
void* set_bytes(void* to, int, size_t);

// One instance for each template instantiation of the function around the declaration.
template <int id, class T> INLINE T& shared(const char* name) {
    constexpr unsigned element = sizeof(std::remove_all_extents_t<T>);
    constexpr unsigned granule = element % 4 == 0 ? 4 : element % 2 == 0 ? 2 : 1;
    static Variable variable = {sizeof(T), alignof(T), element, granule, 0, 0};
    return *static_cast<T*>(shared_variable(&variable, name));
}
template <class T> INLINE T* dynamic() { return static_cast<T*>(dynamic_shared(sizeof(T))); }

template <class T> INLINE uint64_t widen(T value) {
    static_assert(sizeof(T) <= 8, "warp functions move at most 8 bytes");
    uint64_t result = 0;
    __builtin_memcpy(&result, &value, sizeof value);
    return result;
}
template <class T> INLINE T narrow(uint64_t value) {
    T result;
    __builtin_memcpy(&result, &value, sizeof result);
    return result;
}

template <class T, class Operation> INLINE T update(T* address, Operation operation, Order order = Order::RELAXED) {
    T old;
    atomic_read(address, &old, sizeof(T), Order::RELAXED);
    T now = operation(old);
    atomic_update(address, &now, sizeof(T), __builtin_memcmp(&now, &old, sizeof(T)) != 0, order);
    return old;
}

// What simulator.py must know of a kernel: its parameters, and how to call it with pointers to their values.
struct Parameter {
    char kind, element_kind;  // p: pointer, i, u, b (bool), f, h (half), n (bfloat16), v (void), s (anything else)
    char writable;
    uint32_t size, element_size;
};
struct Kernel {
    const char* name;
    void (*invoke)(void** arguments);
    const Parameter* parameters;
    uint32_t count, max_threads;
    uint32_t cluster[3];
};
template <class T> constexpr char kind() {
    if (std::is_pointer_v<T>) return 'p';
    if (std::is_void_v<T>) return 'v';
    if (std::is_same_v<T, bool>) return 'b';
    if (std::is_same_v<T, __half>) return 'h';
    if (std::is_same_v<T, __nv_bfloat16>) return 'n';
    if (std::is_floating_point_v<T>) return 'f';
    if (std::is_integral_v<T> || std::is_enum_v<T>) return std::is_signed_v<T> ? 'i' : 'u';
    return 's';
}
template <class T> constexpr uint32_t size_of() {
    if constexpr (std::is_void_v<T>) return 1;
    else return sizeof(T);
}
template <class T> constexpr Parameter describe() {
    using Pointed = std::remove_pointer_t<T>;
    using E = typename Element<std::remove_cv_t<Pointed>>::type;
    return {kind<T>(), kind<E>(), !std::is_const_v<Pointed>, sizeof(T), size_of<E>()};
}
template <class... A> struct Parameters { static constexpr Parameter list[sizeof...(A) + 1] = {describe<A>()..., {}}; };
template <auto kernel> struct Call;
template <class... A, void (*kernel)(A...)> struct Call<kernel> {
    using Described = Parameters<A...>;
    template <size_t... i>
    __attribute__((noinline, no_sanitize("thread", "undefined"))) static void with(void** a, std::index_sequence<i...>) {
        kernel(*static_cast<std::remove_cv_t<A>*>(a[i])...);
    }
    static void invoke(void** arguments) { with(arguments, std::index_sequence_for<A...>()); }
};
struct Bounds { uint32_t threads; };
struct Dims { uint32_t x, y, z; };
template <auto kernel> constexpr Kernel table_entry(const char* name, uint32_t max_threads, Dims cluster) {
    using Described = typename Call<kernel>::Described;
    constexpr uint32_t count = sizeof(Described::list) / sizeof(Parameter) - 1;
    return {name, Call<kernel>::invoke, Described::list, count, max_threads, {cluster.x, cluster.y, cluster.z}};
}

}  // namespace simulator

#define threadIdx (simulator::thread_index())
#define blockIdx (simulator::block_index())
#define blockDim (simulator::block_size())
#define gridDim (simulator::grid_size())
constexpr int warpSize = 32;

// Barriers. A thread that polls (volatile reads, atomics that change nothing) lets the others run.
INLINE void __syncthreads(HERE) { simulator::block_barrier(simulator::Vote::SYNC, false, where); }
INLINE int __syncthreads_count(int p, HERE) { return simulator::block_barrier(simulator::Vote::COUNT, p, where); }
INLINE int __syncthreads_and(int p, HERE) { return simulator::block_barrier(simulator::Vote::AND, p, where); }
INLINE int __syncthreads_or(int p, HERE) { return simulator::block_barrier(simulator::Vote::OR, p, where); }
INLINE void __syncwarp(unsigned mask = 0xffffffffu, HERE) { simulator::warp_barrier(mask, where); }
INLINE void grid_sync(HERE) { simulator::grid_barrier(where); }
INLINE void cluster_sync(HERE) { simulator::cluster_barrier(where); }
INLINE unsigned cluster_rank() { return simulator::rank_in_cluster(); }
INLINE unsigned cluster_size() { return simulator::size_of_cluster(); }
template <class T> INLINE T* cluster_map(T* mine, unsigned rank) { return static_cast<T*>(simulator::map_shared(mine, rank)); }
INLINE void __threadfence() { simulator::fence(); }
INLINE void __threadfence_block() { simulator::fence(); }
INLINE void __threadfence_system() { simulator::fence(); }
INLINE void __nanosleep(unsigned) { simulator::pause(); }
INLINE long long clock64() { return simulator::ticks(); }
INLINE void __trap(HERE) { simulator::trap("__trap()", where); }
#define assert(condition) \
    ((condition) ? void() : simulator::trap("assert(" #condition ")", {__builtin_FILE(), __builtin_LINE()}))
extern "C" int printf(const char*, ...);
#define memcpy(to, from, size) (simulator::copy_bytes(to, from, size))  // the compiler's own would not be looked at
#define memset(to, value, size) (simulator::set_bytes(to, value, size))

// Warp functions.
#define FASTLSTM_SHUFFLE(name, Index, source)                                                              \
    template <class T> INLINE T name(unsigned mask, T value, Index by, int width = 32, HERE) {             \
        uint3 t = threadIdx, n = blockDim;                                                                 \
        int lane = (t.x + n.x * (t.y + n.y * t.z)) % 32, first = lane & -width, from = source;             \
        if (from < 0 || from >= first + width) from = lane;                                                \
        return simulator::narrow<T>(simulator::shuffle(mask, simulator::widen(value), from, where));       \
    }
FASTLSTM_SHUFFLE(__shfl_sync, int, first + (by & (width - 1)))
FASTLSTM_SHUFFLE(__shfl_up_sync, unsigned, lane - int(by) < first ? lane : lane - int(by))
FASTLSTM_SHUFFLE(__shfl_down_sync, unsigned, lane + int(by))
FASTLSTM_SHUFFLE(__shfl_xor_sync, int, lane ^ by)
#undef FASTLSTM_SHUFFLE
INLINE unsigned __ballot_sync(unsigned mask, int p, HERE) { return simulator::ballot(mask, p, where); }
INLINE int __any_sync(unsigned mask, int p, HERE) { return simulator::ballot(mask, p, where) != 0; }
INLINE int __all_sync(unsigned mask, int p, HERE) { return simulator::ballot(mask, !p, where) == 0; }
INLINE unsigned __activemask() { return simulator::active_lanes(); }
#define FASTLSTM_REDUCE(name, operation)                                                                                    \
    INLINE unsigned name(unsigned mask, unsigned v, HERE) { return simulator::reduce(mask, operation, v, false, where); }   \
    INLINE int name(unsigned mask, int v, HERE) { return simulator::reduce(mask, operation, v, true, where); }
FASTLSTM_REDUCE(__reduce_add_sync, simulator::Reduction::ADD)
FASTLSTM_REDUCE(__reduce_min_sync, simulator::Reduction::MIN)
FASTLSTM_REDUCE(__reduce_max_sync, simulator::Reduction::MAX)
FASTLSTM_REDUCE(__reduce_and_sync, simulator::Reduction::AND)
FASTLSTM_REDUCE(__reduce_or_sync, simulator::Reduction::OR)
FASTLSTM_REDUCE(__reduce_xor_sync, simulator::Reduction::XOR)
#undef FASTLSTM_REDUCE

// Atomics: relaxed, as on the device; others see what came before only through a fence. Operands take the address's type.
#define FASTLSTM_ATOMIC(name, result)                                                                       \
    template <class T> INLINE T name(T* address, std::common_type_t<T> v) {                                 \
        return simulator::update(address, [&](T old) -> T { return result; });                              \
    }
FASTLSTM_ATOMIC(atomicAdd, old + v)
FASTLSTM_ATOMIC(atomicSub, old - v)
FASTLSTM_ATOMIC(atomicExch, v)
FASTLSTM_ATOMIC(atomicMin, v < old ? v : old)
FASTLSTM_ATOMIC(atomicMax, old < v ? v : old)
FASTLSTM_ATOMIC(atomicAnd, old & v)
FASTLSTM_ATOMIC(atomicOr, old | v)
FASTLSTM_ATOMIC(atomicXor, old ^ v)
FASTLSTM_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
FASTLSTM_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef FASTLSTM_ATOMIC
template <class T> INLINE T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return simulator::update(address, [&](T old) -> T { return old == expected ? v : old; });
}
template <class T> INLINE T load_acquire(const T* address) {
    T value;
    simulator::atomic_read(address, &value, sizeof(T), simulator::Order::ACQUIRE);
    return value;
}
template <class T> INLINE void store_release(T* address, std::common_type_t<T> v) {
    simulator::atomic_write(address, &v, sizeof(T), simulator::Order::RELEASE);
}
template <class T> INLINE T add_release(T* address, std::common_type_t<T> v) {
    return simulator::update(address, [&](T old) -> T { return old + v; }, simulator::Order::RELEASE);
}

#include "device_math.hpp"
#include "device_ptx.hpp"
