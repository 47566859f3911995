"""The command ``steppe doctor``.

It needs the core install only, as it is what tells which extras are missing.
"""


def doctor() -> None:
    """Print versions, devices, and which engine each optimizer would use.

    A package that is missing is needed by what stands beside it only.
    """
    # Imported here because torch takes two seconds: help does without.
    from steppe.cli.machine import versions_and_engines

    print(versions_and_engines())
