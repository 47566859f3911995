"""Let pytest import the integrations for their examples, as it collects those of all modules."""

import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path


def pytest_collect_file(file_path: Path) -> None:
    """Import first what frameworks import with warnings, or not at all beside a CPU torch."""
    if file_path.parent.name != "integrations" or file_path.parents[1].name != "steppe":
        return
    with suppress(ModuleNotFoundError):
        import_module("helpers.torchvision_shim")
    if file_path.name == "fastai.py":
        with warnings.catch_warnings(action="ignore"), suppress(ModuleNotFoundError):
            import_module("fastai.basics")
