"""Symmetric matrices too large to store, known by their products with vectors."""
