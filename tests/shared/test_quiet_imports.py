"""What a notebook's user cannot see to is not said; all else is."""

import warnings

import pytest

from steppe._shared.quiet_imports import quiet_imports


def test_only_what_is_meant_is_left_out() -> None:
    with quiet_imports():
        warnings.warn("IProgress not found. Please update jupyter and ipywidgets.", stacklevel=1)
    with pytest.warns(UserWarning, match="something else"), quiet_imports():
        warnings.warn("something else", stacklevel=1)
