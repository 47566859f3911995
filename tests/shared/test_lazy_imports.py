"""Packages hand out their names without importing the modules before somebody asks."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.thorough
def test_steppe_loads_no_torch_before_it_is_used() -> None:
    loaded = "print([name for name in ('torch', 'numpy', 'numba') if name in sys.modules])"
    first, second = run(
        f"import sys, steppe; dir(steppe), steppe.__version__; {loaded}; steppe.AdamCM; {loaded}"
    ).splitlines()
    assert first == "[]"
    assert second == "['torch', 'numpy', 'numba']"


@pytest.mark.thorough
def test_rooms_are_there_without_an_import_of_their_own() -> None:
    assert run("import steppe; print(steppe.theory.rate, steppe.optim.Offload)")


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    code = "import steppe\ntry: steppe.Adam\nexcept AttributeError as error: print(error)"
    assert run(code) == "module 'steppe' has no attribute 'Adam'\n"


def test_all_names_are_listed() -> None:
    assert run("import steppe; print(set(steppe.__all__) - set(dir(steppe)))") == "set()\n"
