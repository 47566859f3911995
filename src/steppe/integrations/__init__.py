"""Frameworks that train: a module for each, which imports the framework, and nothing else does."""
