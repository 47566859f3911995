"""The GPU engine: Triton kernels over all tensors of a batch."""
