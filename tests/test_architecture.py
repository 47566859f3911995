"""Imports run one way, and the core needs torch, NumPy and Numba only."""

import ast
import subprocess
import sys
from pathlib import Path

import steppe

SOURCE = Path(steppe.__file__).parent
LAYERS = [
    {"rules"},
    {"_engines"},
    {"optim", "landscape", "functions"},
    {"theory"},
    {"compare", "bench"},
    {"play"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem in RANK)


def imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    modules = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    } | {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    return {module.split(".")[1] for module in modules if module.startswith("steppe.")}


def test_imports_run_one_way() -> None:
    against = {}
    for path in FILES:
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "_shared":
            continue
        others = imported_rooms(path) & RANK.keys() - {room}
        if higher := {other for other in others if RANK[other] >= RANK[room]}:
            against[str(path)] = higher
    assert not against


def test_instruments_and_theory_know_no_optimizer() -> None:
    for path in FILES:
        if path.relative_to(SOURCE).parts[0] in ("landscape", "theory"):
            assert "optim" not in imported_rooms(path), path


def test_the_core_imports_without_the_extras() -> None:
    blocked = ["typer", "rich", "triton", "scipy", "sklearn", "matplotlib", "mlxtend", "pandas"]
    blocked += ["optuna", "sqlalchemy", "accelerate", "plotly", "torchvision", "timm", "psycopg"]
    blocked += ["transformers", "peft", "gguf"]
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    code += (
        "import torch, steppe, steppe.functions, steppe.theory\n"
        "p = torch.ones(2, requires_grad=True)\n"
        "p.grad = torch.ones(2)\n"
        "steppe.SAM(steppe.AdamCM([p])).step()\n"
        "steppe.functions.ackley()(torch.ones(2))\n"
        "steppe.theory.escape_time('adam', lr=1e-3, batch_size=1, barrier=1.0, h_min=1.0, "
        "h_saddle=1.0, s=0.5)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_training_imports_without_what_only_studies_need() -> None:
    """A study's optional packages are imported where they are used."""
    blocked = ["optuna", "sqlalchemy", "accelerate", "plotly", "torchvision", "timm", "psycopg"]
    blocked += ["transformers", "peft", "gguf"]
    blocked += ["scipy", "sklearn", "matplotlib", "mlxtend", "tensorboard", "pytorch_optimizer"]
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    code += "import steppe.cli.app\n"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
