"""Symmetric matrices too large to store, known by their products with vectors.

:mod:`steppe.landscape.spectra` computes eigenvalues, traces and densities of them.
"""
