"""Data sets of the built-in tasks, each split once and for all, and their batches."""
