"""The face of comparisons in Python and notebooks."""
