// Every function of ptx.cuh, used rightly; macros plant the mistakes that only asynchronous operations make possible.
#include "device/ptx.cuh"

// d = a b + c for one tile; a [16, K], b [K, 8] as [8, K], c and d [16, 8], by lane as ptx.cuh says.
extern "C" __global__ void product_16(const unsigned short* a, const unsigned short* b, const float* c, float* d,
                                      int bfloat16) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const unsigned* rows = reinterpret_cast<const unsigned*>(a);  // two columns at a time
    const unsigned* columns = reinterpret_cast<const unsigned*>(b);
    unsigned fa[4] = {rows[g * 8 + t], rows[(g + 8) * 8 + t], rows[g * 8 + t + 4], rows[(g + 8) * 8 + t + 4]};
    unsigned fb[2] = {columns[g * 8 + t], columns[g * 8 + t + 4]};
    float fc[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]};
    if (bfloat16)
        mma_m16n8k16_bf16(fc, fa, fb, fc);
    else
        mma_m16n8k16_f16(fc, fa, fb, fc);
    d[g * 8 + 2 * t] = fc[0], d[g * 8 + 2 * t + 1] = fc[1], d[(g + 8) * 8 + 2 * t] = fc[2], d[(g + 8) * 8 + 2 * t + 1] = fc[3];
}

extern "C" __global__ void product_tf32(const float* a, const float* b, const float* c, float* d) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned fa[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
                      to_tf32(a[(g + 8) * 8 + t + 4])};
    unsigned fb[2] = {to_tf32(b[g * 8 + t]), to_tf32(b[g * 8 + t + 4])};
    float fc[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]};
    mma_m16n8k8_tf32(fc, fa, fb, fc);
    d[g * 8 + 2 * t] = fc[0], d[g * 8 + 2 * t + 1] = fc[1], d[(g + 8) * 8 + 2 * t] = fc[2], d[(g + 8) * 8 + 2 * t + 1] = fc[3];
}

// The same product, its operands brought by cp.async (in two groups) and ldmatrix; b [K, 8] as it stands, so transposed.
extern "C" __global__ void product_staged(const unsigned short* a, const unsigned short* b, float* d) {
    __shared__ __align__(16) unsigned short sa[16][16], sb[16][8];
    int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    cp_async_16(&sa[lane / 2][lane % 2 * 8], a + lane * 8);
    cp_async_commit();
    cp_async_8(&sb[lane / 2][lane % 2 * 4], b + lane * 4);
    cp_async_commit();
#ifdef WAITS_FOR_ONE
    cp_async_wait<1>();
#else
    cp_async_wait<0>();
#endif
#ifndef NO_WARP_BARRIER
    __syncwarp();
#endif
    unsigned fa[4], fb[4];
    ldmatrix_x4(fa, &sa[lane % 16][lane / 16 * 8]);
    ldmatrix_x4_trans(fb, &sb[lane % 16][0]);
    float fc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_m16n8k16_bf16(fc, fa, fb, fc);
    d[g * 8 + 2 * t] = fc[0], d[g * 8 + 2 * t + 1] = fc[1], d[(g + 8) * 8 + 2 * t] = fc[2], d[(g + 8) * 8 + 2 * t + 1] = fc[3];
}

// Values go round the cluster `steps` times, each block adding 1: by st.async into the next block's slot, two slots in turn.
extern "C" __global__ void CLUSTER(4) ring(const float* x, float* out, int steps) {
    __shared__ float slot[2][32];
    __shared__ unsigned long long full[2], empty[2];
    int t = threadIdx.x;
    unsigned next = (cluster_rank() + 1) % cluster_size(), before = (cluster_rank() + cluster_size() - 1) % cluster_size();
    if (t == 0)
        for (int s = 0; s < 2; ++s) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], 32);
        }
    mbarrier_fence_init();
#ifndef NO_FIRST
    cluster_sync();
#endif
    float value = x[blockIdx.x * 32 + t];
    for (int step = 0; step < steps; ++step) {
        int s = step % 2, parity = step / 2 % 2;
        if (t == 0) mbarrier_arrive_expect_tx(&full[s], 32 * sizeof(float));
#ifndef NO_EMPTY
        if (step >= 2) mbarrier_wait(&empty[s], parity ^ 1);
#endif
        st_async(&slot[s][t], value + 1.0f, &full[s], next);
#ifndef NO_FULL
        mbarrier_wait(&full[s], parity);
#endif
        value = slot[s][t];
        mbarrier_arrive_remote(&empty[s], before);
    }
    out[blockIdx.x * 32 + t] = value;
#ifdef EARLY_RETURN
    if (cluster_rank() == 0) return;
#endif
    cluster_sync();
}

// A barrier of all blocks through a counter in global memory, around an exchange between blocks.
extern "C" __global__ void neighbours(const float* x, float* staged, float* out, unsigned* counter, int steps) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    float value = x[i];
    for (int step = 0; step < steps; ++step) {
        float* row = staged + step % 2 * n;
        row[i] = value;
#ifndef NO_GRID_BARRIER
        __syncthreads();
        if (threadIdx.x == 0) {
#ifdef FENCES
            __threadfence();
            atomicAdd(counter, 1u);
            while (*static_cast<volatile unsigned*>(counter) < (step + 1) * gridDim.x) __nanosleep(20);
            __threadfence();
#elif defined(NO_FENCE)
            atomicAdd(counter, 1u);
            while (*static_cast<volatile unsigned*>(counter) < (step + 1) * gridDim.x) __nanosleep(20);
#else
            add_release(counter, 1u);
            while (load_acquire(counter) < (step + 1) * gridDim.x) __nanosleep(20);
#endif
        }
        __syncthreads();
#endif
        value = row[(i + blockDim.x) % n] + 1.0f;
    }
    out[i] = value;
}
