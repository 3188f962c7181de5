"""The CPU backend, in Numba. Importing this package alone loads neither its kernels nor the BLAS library."""
