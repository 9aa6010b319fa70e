// The activations of common.cuh, and the instructions that they are made of, on arrays.
#include "device/common.cuh"

extern "C" __global__ void activations(const float* x, float* of_sigmoid, float* of_tanh, int n) {
    int i = element();
    if (i < n) of_sigmoid[i] = sigmoid(x[i]), of_tanh[i] = tanh_of(x[i]);
}
extern "C" __global__ void instructions(const float* x, float* powers, float* reciprocals, int n) {
    int i = element();
    if (i < n) powers[i] = ex2_approx(x[i]), reciprocals[i] = rcp_approx(x[i]);
}
