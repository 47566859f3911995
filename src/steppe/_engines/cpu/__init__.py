"""The CPU engine: loops over all tensors of a batch, generated per method and compiled by Numba."""
