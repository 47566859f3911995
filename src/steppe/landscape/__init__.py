"""Instruments that say how flat a minimum is; they know models and data, no optimizer."""

from steppe.landscape.sharpness import Sharpness, sharpness

__all__ = ["Sharpness", "sharpness"]
