"""Data sets and loaders of the built-in tasks."""
