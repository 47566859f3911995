"""Scripts that measure and draw the figures of docs, each with the real optimizers.

They belong to the repository, not to the package: run them by ``python -m figures NAME`` from its
root, or all of them by ``make figures``.
"""
