"""Frameworks that train: a module for each, which imports the framework, and nothing else does.

``steppe.integrations.transformers``, ``.lightning`` and ``.accelerate`` run SAM's passes in their
loops, and log diagnostics. All optimizers but SAM need no integration: docs/training.md.
"""
