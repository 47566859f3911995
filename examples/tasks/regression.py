"""Does a flat minimum help on a table? Disease progression from ten measurements (scikit-learn).

steppe compare examples/tasks/regression.py:task --optimizers adamw,dualadam
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from steppe.compare import Metric, Task


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))


def patients() -> tuple[Tensor, Tensor]:
    x, y = (torch.tensor(each, dtype=torch.float32) for each in load_diabetes(return_X_y=True))
    return 20 * x, (y[:, None] - 150) / 75


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (75 * (outputs - targets)).square().squeeze(1)


task = Task(
    name="diabetes",
    model=make_model,
    train=patients,
    validation=0.2,
    test=0.2,
    loss=F.mse_loss,
    metrics={"RMSE": Metric(squared_error, higher_is_better=False, of_mean="root")},
    epochs=20,
    batch_size=32,
)
