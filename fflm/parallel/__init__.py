"""Several processes that train one model together.

The rest of fflm knows only `communicator.Communicator`, which `world.world` returns. `mpi` is the only module that imports
mpi4py. This package knows nothing of networks, training, or text.
"""
