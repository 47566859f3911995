"""The pictures of docs/architecture.md show the rooms and the imports that there are."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "steppe"
IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "draw_architecture", ROOT / "docs" / "draw_architecture.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(name: str, kind: str) -> set[str]:
    """Return what a committed picture shows of a kind, by its ids."""
    picture = (IMAGES / f"architecture-{name}.svg").read_text()
    return set(re.findall(rf'<g id="{kind}-([^"]+)">', picture))


def test_all_rooms_are_drawn() -> None:
    folders = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert drawn("rooms", "room") == folders | {"rules"}


def test_arrows_are_those_of_the_source(drawing: ModuleType) -> None:
    expected = {f"{upper}-{lower}" for upper, lower in drawing.arrows()}
    assert drawn("rooms", "arrow") == expected, "run: python docs/draw_architecture.py"


def test_arrows_say_who_imports_whom(drawing: ModuleType) -> None:
    """What is known of the house without reading its imports."""
    assert {("optim", "_engines"), ("_engines", "rules")} <= drawing.arrows()
    assert drawing.imports("rules") == set()
    assert "optim" not in drawing.imports("landscape")
    assert "bench" in drawing.imports("cli")


def test_arrows_point_down(drawing: ModuleType) -> None:
    floors = drawing.levels()
    assert all(floors[upper] > floors[lower] for upper, lower in drawing.arrows())


def test_the_stations_of_a_step_are_places_in_the_source(drawing: ModuleType) -> None:
    stations = [place for place, *_ in drawing.STEP]
    assert len(drawn("step", "station")) == len(stations)
    assert (SOURCE / stations[0]).is_dir()
    assert (SOURCE / stations[1]).is_file()
    engines, *others = stations[2].split()
    assert all((SOURCE / "_engines" / name).is_dir() for name in others)
    assert (SOURCE / engines).is_dir()
    assert (SOURCE / stations[3]).is_file()


@pytest.mark.thorough
def test_drawing_writes_what_is_committed(drawing: ModuleType, tmp_path: Path) -> None:
    drawing.save(tmp_path)
    for path in tmp_path.iterdir():
        ids = re.compile(r'<g id="((?:room|arrow|station)-[^"]+)">')
        found, committed = (ids.findall(x.read_text()) for x in (path, IMAGES / path.name))
        assert sorted(found) == sorted(committed)
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in IMAGES.glob("architecture-*.svg")
    }
