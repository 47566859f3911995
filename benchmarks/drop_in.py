"""Put each optimizer in AdamW's place, at its lr and with nothing tuned, and see whether it trains.

An MLP on digits, 10 epochs of 45 steps, ten seeds. Writes the block of docs/training.md between
``<!-- benchmarks/drop_in.py -->`` and ``<!-- end -->``. Takes two minutes on one core. Ends with
status 1 if an optimizer ends more than 2 points of test accuracy below AdamW. InvAdam is shown and
not judged: its steps shrink with the square of the gradient. For optimizers that are SGD the
baseline is SGD at the usual 1e-2.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from page_blocks import with_block
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import steppe
from steppe._shared.files import write_text
from steppe._shared.progress import progress

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
SEEDS = range(10)
EPOCHS, BATCH = 10, 32
TRAINED = 1440
STEPS = EPOCHS * TRAINED // BATCH
MOST_BELOW = 2.0


Make = Callable[..., Optimizer]


class Family(NamedTuple):
    """A baseline, the lr of all, and who takes the baseline's place, by what users write."""

    baseline: str
    lr: float
    members: dict[str, tuple[Make, dict[str, Any]]]
    excepted: frozenset[str] = frozenset()


_RUN = {"total_steps": STEPS}
FAMILIES = (
    Family(
        "`torch.optim.AdamW`",
        1e-3,
        {
            "`torch.optim.AdamW`": (torch.optim.AdamW, {}),
            "`DualAdam`": (steppe.DualAdam, {}),
            f"`DualAdam(total_steps={STEPS})`": (steppe.DualAdam, _RUN),
            "`DualAdam(scale_free=True)`": (steppe.DualAdam, {"scale_free": True}),
            "`MIAdam`": (steppe.MIAdam, {}),
            f"`MIAdam(total_steps={STEPS})`": (steppe.MIAdam, _RUN),
            "`AdamCM`": (steppe.AdamCM, {}),
            "`DualAdamCM`": (steppe.DualAdamCM, {}),
            f"`DualAdamCM(total_steps={STEPS})`": (steppe.DualAdamCM, _RUN),
            "`AdamCG`": (steppe.AdamCG, {}),
            "`RMSpropCG`": (steppe.RMSpropCG, {}),
            "`InvAdam`": (steppe.InvAdam, {}),
            "`InvAdam(lr=10)`": (steppe.InvAdam, {"lr": 10}),
        },
        frozenset({"`InvAdam`", "`InvAdam(lr=10)`"}),
    ),
    Family(
        "`torch.optim.SGD(momentum=0.9)`",
        1e-2,
        {
            "`torch.optim.SGD(momentum=0.9)`": (torch.optim.SGD, {"momentum": 0.9}),
            "`SGDCM`": (steppe.SGDCM, {}),
            "`SGDCG(momentum=0.9)`": (steppe.SGDCG, {"momentum": 0.9}),
        },
    ),
)


def digits() -> tuple[Tensor, Tensor]:
    """Return all images, in [0, 1], and their digits."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def train(make: Make, lr: float, seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """Train once; return the training loss and the test accuracy in percent."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = make(model.parameters(), **{"lr": lr, **options})
    for _ in range(EPOCHS):
        for batch in torch.randperm(TRAINED).split(BATCH):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        outputs = model(images)
        loss = functional.cross_entropy(outputs[:TRAINED], labels[:TRAINED])
        hits = outputs[TRAINED:].argmax(1) == labels[TRAINED:]
    return loss.item(), 100 * hits.double().mean().item()


def main() -> None:
    """Train all, write the table, and say who ends too far below."""
    torch.set_num_threads(1)
    rows, below = [], []
    count = sum(len(family.members) for family in FAMILIES)
    with progress("training", count * len(SEEDS)) as advance:
        for family in FAMILIES:
            scores = {}
            for name, (make, options) in family.members.items():
                found = []
                for seed in SEEDS:
                    found.append(train(make, family.lr, seed, options))
                    advance(1)
                losses, scores[name] = np.transpose(found)
                rows.append(row(name, options.get("lr", family.lr), losses, scores[name]))
            below += too_low(family, scores)
    text = "\n".join([*_HEAD, *rows]) + "\n"
    page = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, with_block(page, "drop_in", text))
    print(text)
    if below:
        print(f"More than {MOST_BELOW:g} points below: {', '.join(below)}")
        raise SystemExit(1)


_HEAD = (
    f"| {STEPS} steps on digits | lr | training loss | test accuracy, % |",
    "| --- | --- | --- | --- |",
)


def row(name: str, lr: float, losses: Any, scores: Any) -> str:
    """Return a line of the table: means, and the standard error of the accuracy."""
    error = np.std(scores, ddof=1) / len(scores) ** 0.5
    return f"| {name} | {lr:g} | {np.mean(losses):.3f} | {np.mean(scores):.1f} ± {error:.1f} |"


def too_low(family: Family, scores: dict[str, Any]) -> list[str]:
    """Name those whose mean is too far below the baseline's."""
    least = np.mean(scores[family.baseline]) - MOST_BELOW
    judged = scores.keys() - family.excepted
    return sorted(name for name in judged if np.mean(scores[name]) < least)


if __name__ == "__main__":
    main()
