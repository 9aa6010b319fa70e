// Kernels that are right, for the tests of the simulator.
extern "C" __global__ void __launch_bounds__(256)
    scale(const REAL* __restrict__ x, REAL* __restrict__ out, REAL factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = factor * x[i];
}

extern "C" __global__ void block_sums(const float* x, float* out, int n) {
    __shared__ float partial[8];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = i < n ? x[i] : 0.0f;
    for (int d = 16; d; d >>= 1) v += __shfl_down_sync(0xffffffffu, v, d);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (int w = 0; w < blockDim.x / 32; ++w) sum += partial[w];
        out[blockIdx.x] = sum;
    }
}
