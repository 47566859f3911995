"""Python imports it as it starts: then torchvision can be imported beside a CPU build of torch.

See helpers/torchvision_shim.py; a worker is a process of its own.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

if find_spec("torchvision") is not None:
    from helpers import torchvision_shim  # noqa: F401
