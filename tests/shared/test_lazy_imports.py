"""Packages hand out their names without importing the modules before somebody asks."""

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import steppe


def run(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
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


def archive(folder: Path) -> Path:
    source = Path(steppe.__file__).parent.parent
    return Path(shutil.make_archive(str(folder / "steppe"), "zip", source, "steppe"))


def compiled(folder: Path) -> Path:
    """Return a folder without source files, as installers of applications make it."""
    shutil.copytree(Path(steppe.__file__).parent, folder / "steppe")
    assert compileall.compile_dir(folder / "steppe", quiet=2, legacy=True)
    for file in (folder / "steppe").rglob("*.py"):
        file.unlink()
    return folder


STEP = """
import steppe, torch
p = torch.nn.Parameter(torch.ones(2))
p.grad = torch.ones(2)
optimizer = steppe.InvAdam([p], lr=0.5, eps=0.0, fused=True)
optimizer.step()
print(steppe.__file__, optimizer.engine, p.tolist())
"""


@pytest.mark.thorough
@pytest.mark.parametrize("packed", [archive, compiled])
def test_a_package_without_source_files_steps_with_its_kernels(packed, tmp_path: Path) -> None:
    root = packed(tmp_path)
    file, *rest = run(STEP, PYTHONPATH=str(root)).split(" ", 1)
    assert file.startswith(str(root))
    assert rest == ["cpu [0.5, 0.5]\n"]
