"""The command as a module: ``python -m steppe``, for launchers such as ``accelerate launch``."""

from steppe.cli import main

if __name__ == "__main__":
    main()
