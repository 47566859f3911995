"""Early stopping: the weights of the epoch with the best validation score."""

import copy
import math
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steppe.compare.records.results import Epoch, MetricDescription


class BestEpoch:
    """Keeps a copy of a model's weights and buffers, as they were after its best epoch.

    That is the one with the best validation score; of equal ones that with the lower loss, then the
    earlier. A run is trained to its end all the same, so that all have the same schedule.

    Parameters
    ----------
    model : nn.Module
        The model, not wrapped, which holds the evaluated weights between epochs.
    optimizer : Optimizer
        Its optimizer, whose state is kept with the weights: curvature after a preconditioner, and
        a checkpoint, are of weights and state of one moment.
    metric : MetricDescription
        Which way the score is better.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, metric: MetricDescription) -> None:
        self._model, self._optimizer = model, optimizer
        self._sign = 1 if metric.higher_is_better else -1
        self._key = [-math.inf, -math.inf]
        self._weights: dict[str, Tensor] = {}
        self._state: dict[str, Any] = {}

    def update(self, epoch: Epoch) -> None:
        """Take the model's weights if the epoch that has just ended is the best so far."""
        score = self._sign * epoch.validation_score
        key = [score if score == score else -math.inf, -epoch.validation_loss]
        if not self._weights or key > self._key:
            self._key = key
            self._weights = {
                name: value.detach().clone() for name, value in self._model.state_dict().items()
            }
            self._state = copy.deepcopy(self._optimizer.state_dict())

    def restore(self) -> None:
        """Put the weights of the best epoch into the model, and its state into the optimizer."""
        if self._weights:
            self._model.load_state_dict(self._weights)
            self._optimizer.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        """Return what an unfinished run goes on with."""
        return {"key": self._key, "weights": self._weights, "optimizer": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._key, self._weights = state["key"], state["weights"]
        self._state = state["optimizer"]
