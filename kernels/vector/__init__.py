"""The SIMD vocabulary that kernels are written in: lanes, activations, narrow words, tile registers, atomics."""
