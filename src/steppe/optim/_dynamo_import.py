"""Import what every optimizer of torch's needs, also where nothing can be written.

:mod:`steppe.optim._base` calls it before it makes the first optimizer of a process.
"""

import os
import sys
import tempfile
from importlib import import_module


def import_dynamo() -> None:
    """Import ``torch._dynamo``, as the first optimizer of a process does.

    On a full disk there is no directory for temporary files, and ``torch._dynamo`` cannot be
    imported without one, although it only names a file in it: here it is told another one.
    """
    if "torch._dynamo" in sys.modules:
        return
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        variable = "TORCHINDUCTOR_CACHE_DIR"
        before = os.environ.get(variable)
        os.environ[variable] = before or os.curdir
        try:
            import_module("torch._dynamo")
        finally:
            if before is None:
                del os.environ[variable]
