"""The CUDA backend, in numba.cuda. Only `fflm.backend.devices` imports its modules, and only where a GPU is asked for."""
