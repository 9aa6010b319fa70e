// One kernel for each thing that the simulator must do as the device does it, or must refuse.

struct Triple {
    float a, b, c;
    double d[4];
};

// --- Warps

// out[k, i]: what lane i gets from shuffle k.
extern "C" __global__ void shuffles(const int* x, int* out, int by, int width) {
    int i = threadIdx.x, n = blockDim.x, v = x[i];
    out[i] = __shfl_sync(0xffffffffu, v, by, width);
    out[n + i] = __shfl_up_sync(0xffffffffu, v, by, width);
    out[2 * n + i] = __shfl_down_sync(0xffffffffu, v, by, width);
    out[3 * n + i] = __shfl_xor_sync(0xffffffffu, v, by, width);
}

extern "C" __global__ void wide_shuffle(const double* x, double* out) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}

extern "C" __global__ void votes(const int* x, unsigned* out) {
    int v = x[threadIdx.x];
    unsigned* mine = out + 8 * threadIdx.x;
    mine[0] = __ballot_sync(0xffffffffu, v > 0);
    mine[1] = __any_sync(0xffffffffu, v > 2);
    mine[2] = __all_sync(0xffffffffu, v > -3);
    mine[3] = __reduce_add_sync(0xffffffffu, v);
    mine[4] = __reduce_min_sync(0xffffffffu, v);
    mine[5] = __reduce_max_sync(0xffffffffu, (unsigned)v);
    mine[6] = __reduce_xor_sync(0xffffffffu, (unsigned)v);
    mine[7] = __syncthreads_count(v > 0) | __syncthreads_and(v > -3) << 8 | __syncthreads_or(v > 2) << 9;
}

// Halves of a warp that meet apart, by masks, and then all of it; one lane leaves before the end.
extern "C" __global__ void halves(const float* x, float* out) {
    int i = threadIdx.x;
    unsigned mask = i < 16 ? 0xffffu : 0xffff0000u;
    float v = x[i];
    for (int d = 8; d; d >>= 1) v += __shfl_xor_sync(mask, v, d);
    v += __shfl_xor_sync(0xffffffffu, v, 16);
    if (i == 31) return;
    out[i] = v + (__ballot_sync(0xffffffffu, 1) == 0x7fffffffu);
}

// The lanes of a warp exchange through memory. Needs the warp's barrier; a shuffle orders nothing.
extern "C" __global__ void through_memory(float* x, float* out) {
    int i = threadIdx.x;
    x[i] = i;
#if defined(SHUFFLE_ONLY)
    __shfl_sync(0xffffffffu, i, 0);
#elif !defined(NO_WARP_BARRIER)
    __syncwarp();
#endif
    out[i] = x[i ^ 1];
}

extern "C" __global__ void other_operation(int* out) {
    unsigned v = threadIdx.x < 16 ? __ballot_sync(0xffffffffu, 1) : __shfl_sync(0xffffffffu, 1, 0);
    out[threadIdx.x] = v;
}

extern "C" __global__ void lanes_at_a_barrier(int* out) {
    if (threadIdx.x < 16) __syncthreads();
    out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
}

extern "C" __global__ void lane_not_in_mask(int* out) { out[threadIdx.x] = __shfl_sync(0xffffu, 1, 0); }

// --- Memory

extern "C" __global__ void dynamic_reverse(const float* x, float* out, int n) {
    extern __shared__ __align__(16) float part[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) part[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = part[n - 1 - i];
}

extern "C" __global__ void unset_shared(float* out) {
    __shared__ float part[32], other;
    if (threadIdx.x == 0) other = 1.0f;
    if (threadIdx.x < 16) part[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = part[threadIdx.x] * other;
}

template <int size> __device__ float* scratch() {
    __shared__ float memory[size];
    return memory;
}
extern "C" __global__ void two_scratches(float* out) {
    float *a = scratch<32>(), *b = scratch<64>();
    a[threadIdx.x] = 1.0f;
    b[threadIdx.x] = 2.0f;
    out[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x] + (a == b);
}

extern "C" __global__ void copy_triples(const Triple* x, Triple* out, int n) {
    int i = threadIdx.x;
    if (i < n) out[i] = x[i];
}

extern "C" __global__ void copy_bytes_of(const float* x, float* out, int n) {
    if (threadIdx.x == 0) memcpy(out, x, n * sizeof(float));
}

extern "C" __global__ void vectors(const float* x, float* out, int offset) {
    float4 v = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + offset);
    *reinterpret_cast<float4*>(out + 4 * threadIdx.x) = make_float4(v.w, v.z, v.y, v.x);
}

extern "C" __global__ void add_one(float* x) { x[threadIdx.x] += 1.0f; }
extern "C" __global__ void through_const(const float* x) { const_cast<float*>(x)[threadIdx.x] = 1.0f; }
extern "C" __global__ void given(Triple t, bool flag, unsigned char small, long long wide, const void* any, double* out) {
    out[0] = t.a + t.b + t.c + t.d[3], out[1] = flag, out[2] = small, out[3] = wide, out[4] = any == nullptr;
}

__device__ float remembered[4];
__constant__ float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};
extern "C" __global__ void own_variables(float* out) {
    remembered[threadIdx.x] = table[threadIdx.x];
    out[threadIdx.x] = remembered[threadIdx.x];
}

__device__ __noinline__ int depth(int* x, int n) {
    int local[64];
    for (int i = 0; i < 64; ++i) local[i] = x[0] + n;
    return n ? depth(x, n - 1) + local[n % 64] : 0;
}
extern "C" __global__ void deep(int* out, int n) { out[0] = depth(out, n); }

extern "C" __global__ void indices(int* out) {
    int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    out[b * blockDim.x * blockDim.y * blockDim.z + i] = 1000 * b + i;
}

// --- Atomics

extern "C" __global__ void histogram(const int* x, unsigned* counts, unsigned long long* sum, int* largest, float* total,
                                     int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    atomicAdd(&counts[x[i]], 1u);
    atomicAdd(sum, (unsigned long long)x[i]);
    atomicMax(largest, x[i]);
    float seen = *static_cast<volatile float*>(total), before;  // by compare and swap
    do {
        before = seen;
        seen = __int_as_float(atomicCAS(reinterpret_cast<int*>(total), __float_as_int(before), __float_as_int(before + x[i])));
    } while (seen != before);
}

extern "C" __global__ void last_wins(unsigned* out) { atomicExch(out, threadIdx.x); }

// The last block to finish adds what all have written.
extern "C" __global__ void last_block_sums(const float* x, float* parts, unsigned* counter, float* out) {
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = x[blockIdx.x];
#ifndef NO_FENCE
        __threadfence();
#endif
        if (atomicAdd(counter, 1u) == gridDim.x - 1) {
            __threadfence();
            float sum = 0.0f;
            for (int b = 0; b < gridDim.x; ++b) sum += parts[b];
            out[0] = sum;
        }
    }
}

extern "C" __global__ void plain_beside_atomic(unsigned* x) {
    if (threadIdx.x == 0) x[0] = 1;
    else atomicAdd(x, 1u);
}

// Whether a block sees what the one before it has written, without anything that would order the two.
extern "C" __global__ void blocks_in_turn(float* x) {
    if (threadIdx.x == 0) x[blockIdx.x + 1] = x[blockIdx.x] + 1.0f;
}

// --- Waiting

extern "C" __global__ void spins(volatile int* flag) {
    while (flag[0] == 0) {
    }
}
extern "C" __global__ void never_ends(int* x) {
    while (x[0] == 0) x[1] += 1;
}
extern "C" __global__ void grid_exchange(const float* x, float* shared, float* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    shared[i] = x[i];
#ifndef NO_GRID_BARRIER
    grid_sync();
#endif
    out[i] = shared[gridDim.x * blockDim.x - 1 - i];
}

// --- Arithmetic

extern "C" __global__ void divides(int* x) { x[0] = x[1] / x[2]; }
extern "C" __global__ void overflows(int* x) { x[0] = x[1] + x[2]; }
extern "C" __global__ void shifts(int* x) { x[0] = x[1] << x[2]; }
extern "C" __global__ void asserts(int* x) { assert(x[0] == 1); }
extern "C" __global__ void rows_of_local(int* x) {
    int local[4] = {1, 2, 3, 4};
    x[0] = local[x[1]];
}

// --- Numbers

extern "C" __global__ void round_to(const float* x, const double* y, __half* h, __nv_bfloat16* b, __half* hd, __nv_bfloat16* bd,
                                    int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half(x[i]);
    b[i] = __float2bfloat16(x[i]);
    hd[i] = __double2half(y[i]);
    bd[i] = __double2bfloat16(y[i]);
}
extern "C" __global__ void widen(const __half* h, const __nv_bfloat16* b, float* fh, float* fb, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    fh[i] = __half2float(h[i]);
    fb[i] = __bfloat162float(b[i]);
}
extern "C" __global__ void bits_of(const unsigned* x, const unsigned* y, unsigned* out) {
    unsigned a = x[threadIdx.x], b = y[threadIdx.x], *mine = out + 8 * threadIdx.x;
    mine[0] = __umulhi(a, b), mine[1] = __popc(a), mine[2] = __clz(a), mine[3] = __brev(a);
    mine[4] = __byte_perm(a, b, 0x5410), mine[5] = __funnelshift_l(a, b, 7), mine[6] = __funnelshift_r(a, b, 7),
    mine[7] = __ffs(a);
}
