"""Device code: the Triton form of the kernels. Their oracles are in `midstream.kernels`."""
