"""A training step of one's own: the two-part loss of a variational autoencoder of digits.

steppe compare examples/tasks/autoencoder.py:task --optimizers adamw,adamcm
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from steppe.compare import Metric, Task


class Autoencoder(nn.Module):
    """64 pixels to the mean and log variance of 8 numbers, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(pixels).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance


def pixels() -> tuple[Tensor, Tensor]:
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    return images, images


def two_part_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Reconstruction error, and the divergence of the code from a standard normal."""
    inputs, targets = batch
    decoded, mean, log_variance = model(inputs)
    reconstruction = F.mse_loss(decoded, targets)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
    return reconstruction + 0.01 * divergence


def squared_error(outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
    return (outputs[0] - targets).square().mean(dim=1)


task = Task(
    name="autoencoder",
    model=Autoencoder,
    train=pixels,
    validation=0.15,
    test=0.15,
    step=two_part_loss,
    predict=lambda model, batch: model(batch[0]),
    metrics={"RMSE": Metric(squared_error, higher_is_better=False, of_mean="root")},
    epochs=10,
    batch_size=64,
)
