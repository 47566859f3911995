"""Helpers for every room: files, caches, console, statistics, optimizers by name.

Each module is a face of its own. They import nothing of the rooms; what makes optimizers by name
takes them from the package's own face, when it is called.
"""
