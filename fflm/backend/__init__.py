"""The operations of a network on a device: some thirty fused operations, and the only code that depends on the device.

`protocol` defines the operations. `formulas` has the scalar mathematics that the kernels of all devices share, and `common` the
functions on the host that all backends share. The packages `cpu` and `cuda` have the same structure: `backend` is the class that
implements the protocol, `kernels` has the kernels that it launches, and `launching` the code that launches them. `devices`
chooses a device and makes its backend. This package knows neither layers nor training nor text.
"""
