"""A storage is one, wherever it is, and what it holds is nobody's twice."""

import pytest
from crowd import open_new, together
from postgres import postgres  # noqa: F401  # a fixture

@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "new")
    return request.getfixturevalue("postgres").database()

@pytest.mark.parametrize("n", range(4))
def test_open(where, n):
    assert together(open_new, 6, where) == [0] * 6
