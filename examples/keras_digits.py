"""Train a Keras model on torch with ``DualAdam``, or with ``--sam`` SAM around it.

``python examples/keras_digits.py`` needs Keras (``pip install keras``). ``fit``, its metrics and
its callbacks work as ever; ``train_step`` steps with an optimizer of torch. SAM's second pass would
count twice in Keras's BatchNormalization, whose statistics are parameters and not buffers: take
other normalisation layers. With ``--resume`` the same command goes on from the last epoch that was
saved.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

import steppe


class TorchOptimized(keras.Sequential):
    """A sequence of layers that ``fit`` trains with ``torch_optimizer``."""

    torch_optimizer: torch.optim.Optimizer

    def train_step(self, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Step, and return the metrics of the first pass."""
        inputs, targets = data
        outputs = []

        def closure() -> Tensor:
            self.torch_optimizer.zero_grad()
            outputs.append(self(inputs, training=True))
            loss = self.compute_loss(x=inputs, y=targets, y_pred=outputs[-1])
            loss.backward()
            return loss

        loss = self.torch_optimizer.step(closure)
        with torch.no_grad():
            self._loss_tracker.update_state(loss, sample_weight=len(inputs))
            return self.compute_metrics(inputs, targets, outputs[0])


class EpochOrder(Sampler[int]):
    """Shuffle each epoch by its number, so that a resumed run sees the same batches."""

    def __init__(self, size: int, epoch: int) -> None:
        self._size, self._epoch = size, epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        """Yield the samples of the next epoch."""
        generator = torch.Generator().manual_seed(self._epoch)
        self._epoch += 1
        yield from torch.randperm(self._size, generator=generator).tolist()


class Save(keras.callbacks.Callback):
    """Save weights, the optimizer's state and the number of the epoch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Print the loss and save."""
        print(f"epoch {epoch + 1} loss {logs['loss']:.6f}")
        optimizer = self.model.torch_optimizer.state_dict()
        saved = {"model": self.model.state_dict(), "optimizer": optimizer, "epoch": epoch + 1}
        torch.save(saved, self._path)


def main() -> None:
    """Train from the first epoch or the last that was saved."""
    parser = argparse.ArgumentParser(description="Train a Keras model with DualAdam, or SAM.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--sam", action="store_true", help="step with SAM around DualAdam")
    parser.add_argument("--out-dir", default="runs/keras")
    parser.add_argument("--resume", action="store_true", help="from the last epoch in --out-dir")
    args = parser.parse_args()

    keras.utils.set_random_seed(0)
    layers = [keras.Input((64,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)]
    model = TorchOptimized(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=["accuracy"])
    params = [variable.value for variable in model.trainable_variables]
    model.torch_optimizer = steppe.DualAdam(params, lr=3e-3, switch_rate=0.02)
    if args.sam:
        model.torch_optimizer = steppe.SAM(model.torch_optimizer, rho=0.05)

    path, done = Path(args.out_dir, "last.pt"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if args.resume:
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        model.torch_optimizer.load_state_dict(saved["optimizer"])
        done = saved["epoch"]

    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    batches = DataLoader(data, batch_size=64, sampler=EpochOrder(len(data), done))
    # The loader shuffles.
    epochs = {"initial_epoch": done, "epochs": args.epochs, "shuffle": False}
    model.fit(batches, **epochs, callbacks=[Save(path)], verbose=0)
    found = model.torch_optimizer.diagnostics()
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
