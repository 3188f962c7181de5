"""How the network is computed: about a dozen fused operations, and the only place that knows a device.

`protocol` names the operations, `formulas` holds the scalar mathematics that all devices share, and `common` what they share on
the host. `cpu` and `cuda` are twins, one for each device: in both of them `backend` is the class that implements the protocol,
`kernels` are what it launches, and `launching` says how. `devices` chooses between the two. Nothing here knows layers,
training or text.
"""
