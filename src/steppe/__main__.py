"""The command as a module: ``python -m steppe``, for launchers such as ``accelerate launch``."""

import atexit
import os
import sys

from steppe.cli import main


def run() -> None:
    """Run the command; as one of several launched processes, leave before Python takes itself down.

    Threads of gloo may let go of a last tensor while that happens, and then abort a process that
    has done all its work: https://github.com/pytorch/pytorch/pull/179291.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        main()
        return
    status: object = None
    try:
        main()
    except SystemExit as end:
        status = end.code
    if isinstance(status, str):
        print(status, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    run()
