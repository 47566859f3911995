"""Eigenvalues, traces and spectral densities of operators."""
