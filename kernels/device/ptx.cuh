// Instructions that CUDA C has no function for: tensor-core products, asynchronous copies, clusters, mbarriers, and counters
// that blocks acquire and release.
//
// Knows nothing of recurrent layers. The tests' simulator has twins of all functions here, with the same names and fragment
// layouts, and leaves this file out. Everything compiles for every architecture; where the device lacks the instruction,
// copies are made at once and what else needs it traps: ask for the compute capability (named at each) before a launch. No
// header is included.
//
// Fragments are those of the PTX ISA, "mma.m16n8k16" and "mma.m16n8k8": with g = lane / 4 and t = lane % 4, a lane holds of
//   c, d [16, 8]   (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
//   a [16, 16] of 16 bits, two columns in a register   (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8)
//   b [16, 8] of 16 bits, two rows in a register       (2t, g) (2t + 8, g)
//   a [16, 8] and b [8, 8] of tf32                     (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4); (t, g) (t + 4, g)
#pragma once

// Between a kernel's `__global__` and `void`: the blocks of a cluster. Compute capability 9.0; elsewhere nothing.
#if defined(FASTLSTM_HOST) || __CUDA_ARCH__ >= 900
#define CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CLUSTER(blocks)
#endif

#ifndef FASTLSTM_HOST

#define PTX static __device__ __forceinline__

PTX unsigned shared_address(const void* shared) { return static_cast<unsigned>(__cvta_generic_to_shared(shared)); }

// The same number, which the compiler keeps in a register; else it reads or computes anew what it could keep.
PTX int kept_number(int x) {
    int y;
    asm volatile("mov.u32 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// --- Numbers. 2^x and 1 / x, off by 2 and by 1 units in the last place at most; numbers below 2^-126 count as zero.

PTX float ex2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
PTX float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// To 16 bits, to the nearest, ties to even.
PTX unsigned short to_bfloat16(float x) {
#if __CUDA_ARCH__ >= 800
    unsigned short y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}
PTX unsigned short to_float16(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
PTX float of_float16(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

// --- Tensor cores: d = a b + c, by all lanes of a warp. bfloat16 and tf32: 8.0; float16: 7.5.

PTX void mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    __trap();
#endif
}

PTX void mma_m16n8k16_f16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    float half[4];  // the sum over the first eight of k
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
                 : "=f"(half[0]), "=f"(half[1]), "=f"(half[2]), "=f"(half[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]), "f"(half[0]), "f"(half[1]), "f"(half[2]), "f"(half[3]));
#endif
}

// The operands are float32's bits, of which the last 13 are ignored; to_tf32 rounds them to nearest.
PTX void mma_m16n8k8_tf32(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    __trap();
#endif
}

PTX unsigned to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return rounded;
#else
    __trap();
    return 0;
#endif
}

// Four 8 x 8 matrices of 16 bits from shared memory, as fragments; lane l gives the address of row l % 8 of matrix l / 8,
// 16 bytes long and aligned.
PTX void ldmatrix_x4(unsigned r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
PTX void ldmatrix_x4_trans(unsigned r[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// --- Copies from global to shared memory that go on beside the thread: 8.0. Their data are there for this thread after
// cp_async_wait<n>, which leaves the last n committed groups under way, and for the block's others after a barrier.

PTX void cp_async_16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}
PTX void cp_async_8(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
#endif
}
PTX void cp_async_4(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *static_cast<unsigned*>(shared) = *static_cast<const unsigned*>(global);
#endif
}
PTX void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int left> PTX void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

// --- Clusters and their mbarriers: 9.0. Where the architecture has none they trap; rank and size are those of one block alone.
#if __CUDA_ARCH__ >= 900

PTX void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
PTX unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
PTX unsigned cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

// The same place as `mine`, which is in shared memory, in block `rank` of the cluster.
template <class T> PTX T* cluster_map(T* mine, unsigned rank) {
    T* theirs;
    asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
    return theirs;
}

// The same as an address for the instructions below.
PTX unsigned remote_address(const void* mine, unsigned rank) {
    unsigned address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(mine)), "r"(rank));
    return address;
}

// An mbarrier is a counter in shared memory whose phase ends when all arrivals, and all bytes expected, have come. Phases are
// numbered from 0; a wait for `parity` ends when the phase of that parity has. mbarrier_fence_init(), then a barrier of the
// cluster, stand between mbarrier_init() and the first use by others.

PTX void mbarrier_init(unsigned long long* barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
PTX void mbarrier_inval(unsigned long long* barrier) {
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
PTX void mbarrier_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
PTX void mbarrier_arrive(unsigned long long* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
PTX void mbarrier_expect_tx(unsigned long long* barrier, unsigned bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
PTX void mbarrier_arrive_expect_tx(unsigned long long* barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Arrivals at another block's mbarrier release, and waits acquire, what threads of the cluster did before in shared memory. A
// compiler since CUDA 12.8 is told that it is shared memory alone; an older one fences global memory too, for the whole GPU.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
#define ARRIVE_RELEASE "fence.release.sync_restrict::shared::cta.cluster;\n mbarrier.arrive.relaxed.cluster"
#define WAIT_ACQUIRE "mbarrier.try_wait.parity.relaxed.cluster"
#define ACQUIRED "fence.acquire.sync_restrict::shared::cluster.cluster;\n"
#else
#define ARRIVE_RELEASE "mbarrier.arrive.release.cluster"
#define WAIT_ACQUIRE "mbarrier.try_wait.parity.acquire.cluster"
#define ACQUIRED ""
#endif
PTX bool mbarrier_try_wait(unsigned long long* barrier, unsigned parity) {
    unsigned over;
    asm volatile(
        "{\n .reg .pred p;\n " WAIT_ACQUIRE ".shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n " ACQUIRED "}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return over;
}
PTX void mbarrier_wait(unsigned long long* barrier, unsigned parity) {
    while (!mbarrier_try_wait(barrier, parity)) {
    }
}
PTX void mbarrier_arrive_remote(unsigned long long* barrier, unsigned rank) {
    asm volatile(ARRIVE_RELEASE ".shared::cluster.b64 _, [%0];" ::"r"(remote_address(barrier, rank)) : "memory");
}
#undef ARRIVE_RELEASE
#undef WAIT_ACQUIRE
#undef ACQUIRED

// Writes `value` to *mine in block `rank` and counts its bytes as arrived on that block's barrier. Nothing else tells the
// other block that the value is there.
PTX void st_async(float* mine, float value, unsigned long long* barrier, unsigned rank) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(remote_address(mine, rank)),
                 "r"(__float_as_uint(value)), "r"(remote_address(barrier, rank))
                 : "memory");
}
PTX void st_async(unsigned* mine, unsigned value, unsigned long long* barrier, unsigned rank) {
    st_async(reinterpret_cast<float*>(mine), __uint_as_float(value), barrier, rank);
}
PTX void st_async(float4* mine, float4 v, unsigned long long* barrier, unsigned rank) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     remote_address(mine, rank)),
                 "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)), "r"(__float_as_uint(v.w)),
                 "r"(remote_address(barrier, rank))
                 : "memory");
}
PTX void st_async(uint4* mine, uint4 v, unsigned long long* barrier, unsigned rank) {
    st_async(reinterpret_cast<float4*>(mine),
             make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)), barrier,
             rank);
}

#else

PTX void cluster_sync() { __trap(); }
PTX unsigned cluster_rank() { return 0; }
PTX unsigned cluster_size() { return 1; }
template <class T> PTX T* cluster_map(T* mine, unsigned) { return mine; }
PTX void mbarrier_init(unsigned long long*, unsigned) { __trap(); }
PTX void mbarrier_inval(unsigned long long*) { __trap(); }
PTX void mbarrier_fence_init() { __trap(); }
PTX void mbarrier_arrive(unsigned long long*) { __trap(); }
PTX void mbarrier_expect_tx(unsigned long long*, unsigned) { __trap(); }
PTX void mbarrier_arrive_expect_tx(unsigned long long*, unsigned) { __trap(); }
PTX bool mbarrier_try_wait(unsigned long long*, unsigned) { __trap(); return true; }
PTX void mbarrier_wait(unsigned long long*, unsigned) { __trap(); }
PTX void mbarrier_arrive_remote(unsigned long long*, unsigned) { __trap(); }
template <class T> PTX void st_async(T*, T, unsigned long long*, unsigned) { __trap(); }

#endif

// --- Counters in global memory between blocks: who acquires a value sees all that its releaser saw or did before.

PTX unsigned load_acquire(const unsigned* address) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}
PTX void store_release(unsigned* address, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}
PTX unsigned add_release(unsigned* address, unsigned value) {
    unsigned old;
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
}

#undef PTX
#endif
