"""How the network is computed: about a dozen fused operations, and the only place that knows a device.

`protocol` names the operations, `formulas` holds the scalar mathematics that every device shares, `blas` reaches SciPy's matrix
product from inside a kernel, `launching` runs kernels on threads, `cpu` is the Numba implementation. Nothing here knows layers,
training or text.
"""
