// What g++'s instrumentation calls: its thread sanitizer before each access, its undefined-behaviour sanitizer at faults.
//
// Kernels are compiled with both, and linked with these functions in place of the sanitizers' own.
#include "runtime.hpp"

using namespace simulator;

#define ACCESS(size)                                                                                             \
    void __tsan_read##size(void* p) { access(p, size, READ, CALLER); }                                           \
    void __tsan_write##size(void* p) { access(p, size, WRITE, CALLER); }                                         \
    void __tsan_unaligned_read##size(void* p) { access(p, size, READ | ANY_ALIGNMENT, CALLER); }                 \
    void __tsan_unaligned_write##size(void* p) { access(p, size, WRITE | ANY_ALIGNMENT, CALLER); }               \
    void __tsan_volatile_write##size(void* p) {                                                                  \
        access(p, size, WRITE | ATOMIC, CALLER);                                                                 \
        if (current) publish(p, Order::RELAXED, true);                                                           \
    }                                                                                                            \
    void __tsan_volatile_read##size(void* p) {                                                                   \
        access(p, size, READ | ATOMIC, CALLER);                                                                  \
        if (current) poll(p), note_read(p, Order::RELAXED);                                                      \
    }
#define UNDEFINED(kind, name, what)                                                                              \
    void __ubsan_handle_##name(void*) { fail(kind, CALLER, 0, "%s: " what, describe(current).c_str()); }
extern "C" {
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void* p, size_t size) { access(p, size, READ | ANY_ALIGNMENT, CALLER); }
void __tsan_write_range(void* p, size_t size) { access(p, size, WRITE | ANY_ALIGNMENT, CALLER); }
void __tsan_init() {}
void __tsan_func_exit() {}
void __tsan_func_entry(void*) {
    if (current && reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) < current->stack + (4 << 10))
        fail(MEMORY, CALLER, 0, "%s: local variables take more than %zu bytes", describe(current).c_str(), STACK - (4 << 10));
}

struct Type {
    uint16_t kind, info;
    char name[1];
};
struct BoundsData {
    const char* file;
    uint32_t line, column;
    const Type *array, *index;
};
void __ubsan_handle_out_of_bounds(BoundsData* data, uintptr_t index) {
    fail(MEMORY, CALLER, 0, "%s: index %ld is outside of %s", describe(current).c_str(), long(index), data->array->name);
}
UNDEFINED(ARITHMETIC, shift_out_of_bounds, "shifts by a negative number of bits or by more than there are")
UNDEFINED(ARITHMETIC, divrem_overflow, "divides an integer by zero")
UNDEFINED(ARITHMETIC, add_overflow, "a signed sum overflows")
UNDEFINED(ARITHMETIC, sub_overflow, "a signed difference overflows")
UNDEFINED(ARITHMETIC, mul_overflow, "a signed product overflows")
UNDEFINED(ARITHMETIC, negate_overflow, "a signed negation overflows")
UNDEFINED(MEMORY, type_mismatch_v1, "an address is not aligned to its type")
}
