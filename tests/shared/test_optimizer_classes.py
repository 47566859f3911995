"""Classes are found by name."""

import pytest
import torch

import steppe
from steppe._shared.optimizer_classes import available


def test_steppe_stands_in_front_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steppe, "AdamW", torch.optim.SGD, raising=False)
    assert available()["adamw"] is torch.optim.SGD
