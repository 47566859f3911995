"""Measures of a model: scores on a data set, and the curvature of its loss."""
