"""The pictures that explain the methods, each from the real optimizers."""
