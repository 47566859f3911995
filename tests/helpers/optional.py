"""What some tests need and not every machine has: a server, a browser, a data set.

``@pytest.mark.needs("chromium")`` skips a test where it is absent, and says how to install it.
``STEPPE_TESTS_BARE=1`` hides all of it: the tests run as on a machine with Python and make only.
``-m needs`` runs only the tests that need something.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

# A test that takes one of these fixtures needs what the fixture starts.
OF_FIXTURE = {"browser": "chromium", "postgres": "postgresql"}


def postgresql_programs() -> str:
    """Return the search path for PostgreSQL's programs; Debian keeps them off the usual one."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return os.pathsep.join([os.environ.get("PATH", ""), *map(str, debian)])


_FINDERS: dict[str, Callable[[], object]] = {
    "chromium": lambda: shutil.which("chromium"),
    "dataset-fashion-mnist": Path("/usr/share/datasets/fashion-mnist").is_dir,
    "postgresql": lambda: shutil.which("initdb", path=postgresql_programs()),
}


def skip_if_absent(item: pytest.Item) -> None:
    """Skip a test if something that it needs is absent."""
    for mark in item.iter_markers("needs"):
        (package,) = mark.args
        if os.environ.get("STEPPE_TESTS_BARE") or not _FINDERS[package]():
            pytest.skip(f"needs {package}: apt-get install {package}")
