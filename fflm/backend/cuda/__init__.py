"""The CUDA backend, in numba.cuda. `fflm.backend.devices` imports its modules only if a GPU is used."""

import numpy as np

# numba-cuda 0.30 needs `row_stack` to compile kernels, and NumPy 2.5 has removed it. fflm's extras exclude that version, but
# another package may have installed it.
if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack
