"""Sequences of different lengths, padded in each batch; the model gets inputs and lengths.

steppe compare examples/tasks/sequences.py:task --optimizers adamw,dualadam --primary loss
"""

import torch
from torch import Tensor, nn

from steppe.compare import Metric, Task

Sample = tuple[Tensor, float]


def waves() -> list[Sample]:
    """400 noisy sine waves of 10 to 40 points; the target is the frequency."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 41, (400,), generator=generator).tolist()
    frequencies = torch.empty(400).uniform_(0.1, 1.0, generator=generator).tolist()
    return [
        (torch.sin(f * torch.arange(n)) + 0.1 * torch.randn(n, generator=generator), f)
        for n, f in zip(lengths, frequencies, strict=True)
    ]


def pad(samples: list[Sample]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return ((padded, lengths), targets): the model is called with both inputs."""
    waves, frequencies = zip(*samples, strict=True)
    padded = nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
    return (padded, torch.tensor([len(wave) for wave in waves])), torch.tensor(frequencies)


class Reader(nn.Module):
    """A GRU whose state after the last point of each wave gives the frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, padded: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.gru(padded.unsqueeze(2))
        last: Tensor = states[torch.arange(len(lengths)), lengths - 1]
        return self.head(last).squeeze(1)  # type: ignore[no-any-return]


task = Task(
    name="waves",
    model=Reader,
    train=waves,
    validation=0.2,
    test=0.2,
    collate_fn=pad,
    loss=nn.functional.mse_loss,
    metrics={
        "error": Metric(lambda outputs, targets: (outputs - targets).abs(), higher_is_better=False)
    },
    epochs=15,
    batch_size=32,
)
