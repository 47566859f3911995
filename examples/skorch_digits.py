"""Train with skorch: ``DualAdam``, or with ``--sam`` SAM around it, which skorch's closures drive.

``python examples/skorch_digits.py`` needs skorch (``pip install skorch``). ``--search`` looks for
the best lr and switch rate by scikit-learn's grid search. With ``--resume`` the same command goes
on from the last epoch that was saved.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from skorch.history import History
from torch import nn

import steppe


class SeedEpochs(Callback):
    """Shuffle each epoch by its number, so that a resumed run sees the same batches."""

    def on_epoch_begin(self, net: NeuralNetClassifier, **_: Any) -> None:
        """Seed torch's generator, which the data loader shuffles by."""
        torch.manual_seed(len(net.history))


def classifier(args: argparse.Namespace, callbacks: list[Any]) -> NeuralNetClassifier:
    """Make the classifier; options of the optimizer are parameters ``optimizer__…``."""
    # SAM takes its base's options beside its own.
    options = {"optimizer": steppe.DualAdam, "optimizer__switch_rate": 0.02}
    if args.sam:
        options |= {"optimizer": steppe.SAM, "optimizer__base": steppe.DualAdam}
    torch.manual_seed(0)
    return NeuralNetClassifier(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        criterion=nn.CrossEntropyLoss,
        lr=3e-3,
        max_epochs=args.epochs,
        batch_size=64,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[("seed", SeedEpochs()), *callbacks],
        verbose=0,
        **options,
    )


def main() -> None:
    """Train from the first epoch or the last that was saved, or search."""
    parser = argparse.ArgumentParser(description="Train with DualAdam, or SAM, by skorch.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--sam", action="store_true", help="step with SAM around DualAdam")
    parser.add_argument("--search", action="store_true", help="for the best lr and switch rate")
    parser.add_argument("--out-dir", default="runs/skorch")
    parser.add_argument("--resume", action="store_true", help="from the last epoch in --out-dir")
    args = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    inputs = (images / 16).astype(np.float32)
    if args.search:
        grid = {"lr": [1e-3, 1e-2], "optimizer__switch_rate": [0.02, 0.2]}
        search = GridSearchCV(classifier(args, []), grid, cv=2).fit(inputs, labels)
        print(f"accuracy {search.best_score_:.4f} with {search.best_params_}")
        return

    saved = Checkpoint(monitor=None, dirname=args.out_dir)
    callbacks: list[Any] = [("saved", saved)]
    if args.resume:
        callbacks.append(("resumed", LoadInitState(saved)))
        args.epochs -= len(History.from_file(str(Path(args.out_dir, "history.json"))))
    net = classifier(args, callbacks).fit(inputs, labels)

    for epoch in net.history[-args.epochs :]:
        print(f"epoch {epoch['epoch']} loss {epoch['train_loss']:.6f}")
    found = net.optimizer_.diagnostics()
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
