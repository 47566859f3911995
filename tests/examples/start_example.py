"""Run an example as the command line does, once for each list of arguments."""

import json
import runpy
import sys
from importlib import import_module
from importlib.util import find_spec


def main(script: str, *runs: str) -> None:
    if find_spec("torchvision"):
        # Lightning and transformers import it, and would fail where torch is a CPU build.
        import_module("helpers.torchvision_shim")
    for arguments in runs:
        sys.argv = [script, *json.loads(arguments)]
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
