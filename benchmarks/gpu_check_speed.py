"""Speed of steps on a device: bytes moved, beside the device's own copy, and the host's time.

On CUDA devices times are the device's own, between events. The host runs ahead, as it does in
training, so that they hold nothing of it; its time is measured on tensors of 64 numbers.
"""

import gc
from collections.abc import Sequence

import numpy as np
import torch
from gpu_check_sections import Found, Save
from torch.optim import Optimizer

from steppe._shared.optimizer_state import state_bytes
from steppe._shared.statistics import ratio_of_medians
from steppe.bench import (
    BASELINE,
    Action,
    Copy,
    MeasuredOptimizer,
    find_measured,
    items_stored,
    least_bytes,
    measure,
    time_in_turn,
    uniform,
    warm_up,
)

#: Of DualAdam in float32.
MOST_RATIO = 1.02
LEAST_SHARE = 0.85

MEASURED: tuple[MeasuredOptimizer, ...] = (
    find_measured("dualadam"),
    find_measured("dualadam-scale-free"),
    find_measured("dualadam-bf16"),
    find_measured("dualadam-int8"),
    find_measured("dualadam-24bit"),
    find_measured("adamcm-keeping"),
    find_measured("adamcm-replacing"),
)
_HOST = ("dualadam", "dualadam-scale-free", "invadam", "adamcm-keeping", "sgdcm")

# Numbers, and numbers in a tensor. Few tensors: the host must not be what is waited for.
_NUMBERS, _IN_TENSOR = 1_000_000_000, 8_000_000
# AdamCM's parameters, gradients and state, and AdamW's beside them.
_BYTES_A_NUMBER = 40 + 16
_SHARE_OF_MEMORY = 0.8
# So much that the device's caches hold little of it.
_COPIED = 2**30


def bandwidth(device: torch.device, small: bool, save: Save) -> Found:
    """Time a step over 1 G parameters, or as many as fit, beside AdamW(fused=True) and a copy."""
    shapes = uniform(4, 5000) if small else uniform(_count(device), _IN_TENSOR)
    rounds = 3 if small else 15
    copy = Copy(device, 2**16 if small else _COPIED)
    baseline = BASELINE.build(shapes, device)
    warm_up(baseline)
    (copying,) = device_times([copy], rounds, device)
    speed = copy.moved / float(np.median(copying))
    numbers = sum(p.numel() for group in baseline.param_groups for p in group["params"])
    found: Found = {"numbers": numbers, "copy_bytes_per_s": speed, "steps": {}, "missed": []}
    for measured in MEASURED:
        step = _measure(measured, shapes, baseline, speed, rounds, device)
        found["steps"][measured.name] = step
        save(found)
        # What a cycle of references holds would be missing to the next optimizer.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cuda" and not small:
        found["missed"] = _missed(found["steps"]["dualadam"])
    return found


def _measure(
    measured: MeasuredOptimizer,
    shapes: Sequence[tuple[int, ...]],
    baseline: Optimizer,
    speed: float,
    rounds: int,
    device: torch.device,
) -> Found:
    optimizer = measured.build(shapes, device)
    warm_up(optimizer)
    before = items_stored(optimizer)
    ours, theirs = device_times([optimizer.step, baseline.step], rounds, device)
    storing = (items_stored(optimizer) - before) / (rounds + 1)
    seconds, least = float(np.median(ours)), least_bytes(optimizer, storing)
    ratio = ratio_of_medians(ours, theirs)
    numbers = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return {
        "engine": getattr(optimizer, "engine", None),
        "seconds": seconds,
        "adamw_seconds": float(np.median(theirs)),
        "ratio": [ratio.value, ratio.low, ratio.high],
        "bytes_per_number": least / numbers,
        "state_bytes_per_number": state_bytes(optimizer) / numbers,
        "share_of_copy": least / seconds / speed,
    }


def _missed(step: Found) -> list[str]:
    """Say what DualAdam in float32 does not reach."""
    missed = []
    if step["engine"] != "gpu":
        missed.append(f"dualadam was stepped by {step['engine']}")
    if step["ratio"][0] > MOST_RATIO:
        missed.append(
            f"dualadam takes {step['ratio'][0]:.3f} of AdamW's time, at most {MOST_RATIO}"
        )
    if step["share_of_copy"] < LEAST_SHARE:
        share = step["share_of_copy"]
        missed.append(f"dualadam has {share:.2f} of a copy's speed, at least {LEAST_SHARE}")
    return missed


def host_time(device: torch.device, small: bool, save: Save) -> Found:
    """Time what the host does for a step over few and many small tensors, in AdamW's units."""
    steps = 1 if small else 10
    found: Found = {"tensors": {}}
    for count in (1, 62, 148):
        line = found["tensors"].setdefault(str(count), {})
        for name in _HOST:
            measured = find_measured(name)
            one = measure(str(count), uniform(count, 64), measured, steps, device, host=True)
            line[name] = {
                "seconds": one.seconds,
                "adamw_seconds": one.baseline_seconds,
                "ratio": [*one.ratio],
            }
        save(found)
    return found


def device_times(actions: Sequence[Action], rounds: int, device: torch.device) -> list[list[float]]:
    """Time actions in turn by the device's clock, after a round that the host gets ahead in."""
    for action in actions:
        action()
    if device.type != "cuda":
        return time_in_turn(actions, rounds, device)
    marks = [[(_mark(), _mark()) for _ in range(rounds)] for _ in actions]
    for i in range(rounds):
        for action, pairs in zip(actions, marks, strict=True):
            start, end = pairs[i]
            start.record()
            action()
            end.record()
    torch.cuda.synchronize(device)
    return [[1e-3 * start.elapsed_time(end) for start, end in pairs] for pairs in marks]


def _mark() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _count(device: torch.device) -> int:
    """Return how many tensors fit into the device's free memory, of those of 1 G numbers."""
    if device.type != "cuda":
        return _NUMBERS // _IN_TENSOR
    free, _ = torch.cuda.mem_get_info(device)
    fitting = int(_SHARE_OF_MEMORY * free - 2 * _COPIED) // (_BYTES_A_NUMBER * _IN_TENSOR)
    return max(1, min(_NUMBERS // _IN_TENSOR, fitting))
