"""Numbers as JSON has them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def plain(value: Any, digits: int = 6) -> Any:
    """Return nested mappings, sequences, arrays and tensors as JSON's own types.

    What is not finite becomes None: JSON has no word for it. Numbers keep so many digits, six being
    more than a picture shows.

    Examples
    --------
    >>> plain({"loss": np.array([1.0, np.inf]), "steps": (1, 2)})
    {'loss': [1.0, None], 'steps': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each, digits) for key, each in value.items()}
    if isinstance(value, torch.Tensor):
        return plain(value.detach().cpu().numpy(), digits)
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), digits)
    if isinstance(value, list | tuple):
        return [plain(each, digits) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value
