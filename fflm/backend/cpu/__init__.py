"""The CPU backend, in Numba. To import this package alone loads neither its kernels nor BLAS."""
