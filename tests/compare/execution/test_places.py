"""A study lies where the user says, whatever the characters of the path."""

from pathlib import Path

import pytest

from steppe.compare.execution.study_registry import read_study
from steppe.compare.execution.study_storage import open_storage

PATHS = [
    "my%20study",
    "q?x=1",
    "a#b",
    "two words",
    "{a}{{b}}",
    "'single' \"double\"",
    "żółw 雪",
    "-dash",
    "~",
    "a:b@c",
    "file:x",
    "sqlite+x",
    "a&b;c|d",
    "back\\slash",
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "end"),
    [*((name, "") for name in PATHS[::2]), *((name, ".sqlite") for name in PATHS[1::2])],
)
def test_a_path_is_a_path(
    name: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = name + end
    open_storage(where, create=True).engine.dispose()
    expected = Path(where) if end else Path(where, "study.sqlite")
    assert [path for path in Path().rglob("*") if path.is_file()] == [expected]
    before = expected.read_bytes()
    for named in (where, str(expected), str(expected.resolve())):
        open_storage(named).engine.dispose()
        with pytest.raises(ValueError, match="holds no study of steppe compare"):
            read_study(named)
    assert [path for path in Path().rglob("*") if path.is_file()] == [expected]
    assert expected.read_bytes() == before


@pytest.mark.parametrize("url", ["sqlite:///a%20b.db", "sqlite:///a.db?x=1", "sqlite:///a.db#b"])
def test_a_url_of_a_file_that_can_be_read_in_two_ways_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="give the file's path alone"):
        open_storage(url, create=True)
    assert not list(tmp_path.iterdir())
