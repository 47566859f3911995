"""Eigenvalues, trace and spectral density of an operator, each with an error estimate."""
