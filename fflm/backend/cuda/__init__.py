"""The CUDA backend, in numba.cuda. `fflm.backend.devices` imports its modules only if a GPU is used."""
