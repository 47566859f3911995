"""Import libraries that warn in notebooks of what their users cannot see to."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Leave out tqdm's warning that ipywidgets is not installed: Optuna's import raises it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        yield
