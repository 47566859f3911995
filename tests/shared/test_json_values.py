"""Numbers as JSON has them."""

import json
import math

import numpy as np
import torch

from steppe._shared.json_values import json_ready


def test_everything_becomes_what_json_has() -> None:
    data = {
        "array": np.array([[1.0, np.nan], [np.inf, 2.0]]),
        "tensor": torch.tensor([1, 2]),
        "scalar": np.float64(0.1234567890),
        "nested": ({"value": -math.inf}, [True, None, "text", 3]),
        0.5: np.int64(7),
    }
    assert json.loads(json.dumps(json_ready(data), allow_nan=False)) == {
        "array": [[1.0, None], [None, 2.0]],
        "tensor": [1, 2],
        "scalar": 0.123457,
        "nested": [{"value": None}, [True, None, "text", 3]],
        "0.5": 7,
    }
