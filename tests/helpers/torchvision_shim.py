"""Torchvision, also where its compiled library cannot be loaded: import it from here first.

PyPI's torchvision is built for CUDA, and fails to import beside a CPU build of torch because two
operators are not there. Declaring those is enough: models, transforms and data sets use neither.
"""

from importlib import import_module

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")

try:
    torchvision = import_module("torchvision")
except RuntimeError:
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision = import_module("torchvision")
