"""The loss along lines, planes, paths and trajectories."""
