"""Importing this makes torchvision importable, also where its compiled library cannot be loaded.

PyPI's torchvision is built for CUDA, and fails to import beside a CPU build of torch because two
operators are not there. Declaring those is enough: models, transforms and data sets use neither.
"""

import importlib

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")

try:
    importlib.import_module("torchvision")
except RuntimeError:
    _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
