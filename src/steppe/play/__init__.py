"""Optimizers on test functions: descents, where they end, and pictures of them."""

from steppe.play.descent import Descent, descend

__all__ = ["Descent", "descend"]
