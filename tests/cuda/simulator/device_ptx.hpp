// Host twins of kernels/device/ptx.cuh: tensor-core products, asynchronous copies and mbarriers, with PTX's fragment layouts.
//
// Copies happen as late as the device may make them: cp.async when its group is waited for, st.async when someone asks the
// mbarrier. Whoever forgets to wait reads old data, in every run.
#pragma once

namespace simulator {
enum class Product { BF16, F16, TF32 };
void mma(Product, float* d, const uint32_t* a, const uint32_t* b, const float* c, Where);
void load_matrix(unsigned* result, const void* row, bool transposed, Where);
void copy_async(void* shared, const void* global, unsigned bytes);
void copy_commit();
void copy_wait(unsigned left);
void mbarrier_create(unsigned long long*, unsigned count);
void mbarrier_drop(unsigned long long*);
void mbarrier_signal(unsigned long long*, unsigned rank, bool remote, bool arrives, unsigned expected_bytes);
bool mbarrier_test(unsigned long long*, unsigned parity);
void mbarrier_block(unsigned long long*, unsigned parity, Where);
void store_async(void* mine, const void* value, unsigned bytes, unsigned long long* barrier, unsigned rank);
}  // namespace simulator

// d = a b + c on fragments that the lanes of a warp hold together.
INLINE void mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], HERE) {
    simulator::mma(simulator::Product::BF16, d, a, b, c, where);
}
INLINE void mma_m16n8k16_f16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], HERE) {
    simulator::mma(simulator::Product::F16, d, a, b, c, where);
}
INLINE void mma_m16n8k8_tf32(float d[4], const unsigned a[4], const unsigned b[2], const float c[4], HERE) {
    simulator::mma(simulator::Product::TF32, d, a, b, c, where);
}
INLINE unsigned to_tf32(float x) {  // cvt.rna.tf32.f32: to 10 bits, ties away from zero
    unsigned pattern = __float_as_uint(x);
    if ((pattern & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
    if ((pattern & 0x7f800000u) == 0x7f800000u) return pattern;
    return (pattern + 0x1000u) & 0xffffe000u;
}
INLINE int kept_number(int x) { return x; }
INLINE unsigned short to_bfloat16(float x) { return simulator::bfloat16_of(x); }
INLINE unsigned short to_float16(float x) { return simulator::half_of(x); }
INLINE float of_float16(unsigned short x) { return simulator::of_half(x); }

// Off by as much as the device may be, to one side or the other by x: results hold for what a device does within its bounds.
INLINE float ex2_approx(float x) { return simulator::off(exp2(double(simulator::flushed(x))), 2, x); }
INLINE float rcp_approx(float x) { return simulator::off(1.0 / simulator::flushed(x), 1, x); }

INLINE void ldmatrix_x4(unsigned r[4], const void* row, HERE) { simulator::load_matrix(r, row, false, where); }
INLINE void ldmatrix_x4_trans(unsigned r[4], const void* row, HERE) { simulator::load_matrix(r, row, true, where); }

INLINE void cp_async_16(void* shared, const void* global) { simulator::copy_async(shared, global, 16); }
INLINE void cp_async_8(void* shared, const void* global) { simulator::copy_async(shared, global, 8); }
INLINE void cp_async_4(void* shared, const void* global) { simulator::copy_async(shared, global, 4); }
INLINE void cp_async_commit() { simulator::copy_commit(); }
template <int left> INLINE void cp_async_wait() { simulator::copy_wait(left); }

// An mbarrier stands in shared memory; `rank` names the block of the cluster whose copy of it, or of `mine`, is meant.
INLINE void mbarrier_init(unsigned long long* barrier, unsigned count) { simulator::mbarrier_create(barrier, count); }
INLINE void mbarrier_inval(unsigned long long* barrier) { simulator::mbarrier_drop(barrier); }
INLINE void mbarrier_fence_init() {}
INLINE void mbarrier_arrive(unsigned long long* barrier) { simulator::mbarrier_signal(barrier, 0, false, true, 0); }
INLINE void mbarrier_arrive_remote(unsigned long long* barrier, unsigned rank) {
    simulator::mbarrier_signal(barrier, rank, true, true, 0);
}
INLINE void mbarrier_expect_tx(unsigned long long* barrier, unsigned bytes) {
    simulator::mbarrier_signal(barrier, 0, false, false, bytes);
}
INLINE void mbarrier_arrive_expect_tx(unsigned long long* barrier, unsigned bytes) {
    simulator::mbarrier_signal(barrier, 0, false, true, bytes);
}
INLINE bool mbarrier_try_wait(unsigned long long* barrier, unsigned parity) {
    return simulator::mbarrier_test(barrier, parity);
}
INLINE void mbarrier_wait(unsigned long long* barrier, unsigned parity, HERE) {
    simulator::mbarrier_block(barrier, parity, where);
}
template <class T> INLINE void st_async(T* mine, std::common_type_t<T> value, unsigned long long* barrier, unsigned rank) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "st.async moves 4, 8 or 16 bytes");
    simulator::store_async(mine, &value, sizeof(T), barrier, rank);
}
