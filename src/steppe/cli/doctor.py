"""The command ``steppe doctor``.

It needs the core install only, as it is what tells which extras are missing.
"""


def doctor(*, warm: bool = False) -> None:
    """Print versions, devices, and which engine each optimizer would use.

    A package that is missing is needed by what stands beside it only.

    Parameters
    ----------
    warm : bool
        Compile the CPU kernels of all optimizers ahead, as for a container, instead of each in
        the first step that needs it. Kernels are for this machine's processor and these versions.

    Raises
    ------
    SystemExit
        Kernels cannot be compiled, or not be kept; it says why.
    """
    # Imported here because torch takes two seconds: help does without.
    if warm:
        from steppe.cli.kernel_warming import warm_kernels

        warm_kernels()
        return
    from steppe.cli.machine import versions_and_engines

    print(versions_and_engines())
