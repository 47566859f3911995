"""Symmetric operators known by their products with vectors."""
