"""The face of studies: every name that it promises can be imported from it."""

import pytest

import steppe.compare


@pytest.mark.parametrize("name", steppe.compare.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(steppe.compare, name) is not None
    assert name in dir(steppe.compare)
