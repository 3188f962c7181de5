"""How the network is computed: about a dozen fused operations, and the only place that knows a device.

`protocol` names the operations, `formulas` holds the scalar mathematics that every device shares, `blas` reaches SciPy's matrix
product from inside a kernel, `cpu` is the Numba implementation. Nothing here knows layers, training or text.
"""

import os

# Threads that wait should sleep: where other programs use the cores, spinning at each of a step's barriers costs ten times the
# step. OpenMP reads this when Numba starts its threads, which may be before any kernel is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The highest level of optimisation takes a third longer to compile than the second, for kernels that are no faster. Numba reads
# this when it is imported.
os.environ.setdefault("NUMBA_OPT", "2")
