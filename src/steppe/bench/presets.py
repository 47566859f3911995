"""The optimizers that ``steppe bench`` knows beside those of all commands, in one table.

They choose which path a step takes, not how a model is trained well; and they are the peers: what
other packages offer to the same users.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class TimingPreset:
    """What a name stands for.

    Attributes
    ----------
    optimizer : str
        The name of a class of steppe or torch.optim in lower case, or ``package.module:Class``.
    options : mapping, default empty
        Keyword arguments for the class.
    devices : tuple of str, default empty
        Types of the devices on which a peer is measured unless other optimizers are asked for.
    dtype : torch.dtype, default torch.float32
        Number format of the parameters.
    module_settings : mapping, default empty
        Settings that a package has for all its optimizers, as ``package.module:attribute``.
    """

    optimizer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    module_settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The package that has to be installed for a peer."""
        return self.optimizer.partition(":")[0].partition(".")[0]


# The gradients stay as they are. So with keys that do not decay no step has a priority strictly
# greater than those in a full buffer, and nothing is replaced.
_PATHS = {
    "adamcm-keeping": TimingPreset("adamcm", {"priority_decay": 1.0}),
    "adamcm-replacing": TimingPreset("adamcm", {"replacement": "fifo"}),
    "adamw-for-loop": TimingPreset("adamw", {"foreach": False}),
    "adamw-foreach": TimingPreset("adamw", {"foreach": True}),
    "adamw-fused": TimingPreset("adamw", {"fused": True}),
    "dualadam-24bit": TimingPreset(
        "dualadam", {"param_error": "int8", "state_dtype": "int8"}, dtype=torch.bfloat16
    ),
    "dualadam-switched": TimingPreset("dualadam", {"switch_rate": 1.0}),
}

# By default HeavyBall frees the gradients in its step: all steps but the first would do nothing.
_KEEP_GRADIENTS = {"consume_grad": False}
# Compiling takes minutes on a CPU. HeavyBall reads this at each step, so each row sets it anew.
_HEAVYBALL_COMPILED = {"heavyball.utils:compile_mode": "max-autotune-no-cudagraphs"}
_HEAVYBALL_EAGER = {"heavyball.utils:compile_mode": None}
_BOTH = ("cpu", "cuda")

#: The peers: DualAdam itself; a mean over each tensor, as ``scale_free`` takes; a longer memory of
#: gradients, as AdamCM's; AdamW in float32; states in few bits; weights of 24 bits.
PEERS: Mapping[str, TimingPreset] = {
    "pytorch-optimizer-dualadam": TimingPreset("pytorch_optimizer:DualAdam", devices=_BOTH),
    "pytorch-optimizer-stableadamw": TimingPreset("pytorch_optimizer:StableAdamW", devices=_BOTH),
    "pytorch-optimizer-ademamix": TimingPreset("pytorch_optimizer:AdEMAMix", devices=_BOTH),
    "heavyball-adamw": TimingPreset(
        "heavyball:AdamW", _KEEP_GRADIENTS, ("cuda",), module_settings=_HEAVYBALL_COMPILED
    ),
    "heavyball-adamw-eager": TimingPreset(
        "heavyball:AdamW", _KEEP_GRADIENTS, ("cpu",), module_settings=_HEAVYBALL_EAGER
    ),
    "heavyball-adamw-24bit": TimingPreset(
        "heavyball:AdamW",
        {**_KEEP_GRADIENTS, "param_ecc": "bf16+8"},
        ("cuda",),
        torch.bfloat16,
        _HEAVYBALL_COMPILED,
    ),
    # torchao compiles a kernel for each shape, which takes minutes on a CPU; FlashOptim has kernels
    # for CUDA alone.
    "torchao-adamw-8bit": TimingPreset("torchao.optim:AdamW8bit", devices=("cuda",)),
    "torchao-adamw-4bit": TimingPreset("torchao.optim:AdamW4bit", devices=("cuda",)),
    "torchao-adamw-fp8": TimingPreset("torchao.optim:AdamWFp8", devices=("cuda",)),
    "flashoptim-adamw-24bit": TimingPreset(
        "flashoptim:FlashAdamW", devices=("cuda",), dtype=torch.bfloat16
    ),
}

#: All of this file, by name.
TIMING_PRESETS: Mapping[str, TimingPreset] = {**_PATHS, **PEERS}
