"""Predict the time of the GPU kernels from their machine code, without a GPU.

``sass`` reads the disassembly, ``flow`` finds its loops and the path that an iteration takes,
``loops`` counts what that path does for an element of a row, ``machine`` describes the GPUs and how
many blocks fit an SM, ``prediction`` turns both into a time. ``cuda`` and ``triton`` compile the
kernels, ``write`` writes docs/machine_model.md. Everything here is arithmetic about code; none of
it is a measurement.
"""
