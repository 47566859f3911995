"""Refuse wrong arguments and states of a Monitor before anything has changed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from steppe._shared.messages import shortened
from steppe._shared.validation import check_integer, check_number, check_positive, checked_seed
from steppe.landscape.monitoring.cost_budget import COUNTS
from steppe.landscape.monitoring.quantities import QUANTITIES
from steppe.landscape.monitoring.run_measurement import RunMeasurement
from steppe.landscape.monitoring.update_size import sampled_weights
from steppe.landscape.objective.exact_passes import unwrapped
from steppe.landscape.objective.objective import Objective
from steppe.landscape.objective.parameter_choice import Params, checked_params
from steppe.landscape.objective.parameters import check_module


def check_monitor_options(
    every: int | None,
    share: float,
    samples: int | None,
    quantities: Iterable[str] | None,
    rho: float,
    tol: float,
    seed: int,
) -> list[str]:
    """Return the names of the quantities to measure, in their order.

    Raises
    ------
    TypeError, ValueError
        An option is of a wrong type or out of its range.
    """
    for name, value in {"every": every, "samples": samples}.items():
        if value is not None:
            check_integer(**{name: value})
    check_number(share=share)
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be above 0 and at most 1: 0.05 is one twentieth")
    check_positive(rho=rho, tol=tol)
    checked_seed(seed)
    if quantities is None:
        return list(QUANTITIES)
    if isinstance(quantities, str):
        raise TypeError(f"quantities must be a list of names, got the string {quantities!r}")
    if not isinstance(quantities, Iterable):
        raise TypeError(f"quantities must be a list of names, got {quantities!r}")
    wanted = list(quantities)
    unknown = [name for name in wanted if name not in QUANTITIES]
    if unknown or not wanted:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"quantities must be some of {', '.join(QUANTITIES)}; got {got}")
    return [name for name in QUANTITIES if name in wanted]


def check_clocks(objective: Objective, every: int | None, clock: Callable[[], float]) -> None:
    """Refuse what is no clock, and to let the clocks of several processes decide.

    Raises
    ------
    TypeError
        ``clock`` is no function.
    ValueError
        The model is trained by several processes, and no interval is given.
    """
    if not callable(clock):
        raise TypeError(f"clock must be a function that returns seconds, got {clock!r}")
    if every is None and objective.is_distributed:
        raise ValueError(
            "every=None cannot be taken under DistributedDataParallel: the clocks of processes "
            "differ, and all have to measure at the same steps; pass the number of steps"
        )


def trained_params(model: nn.Module, optimizer: Any, params: Params | None) -> list[Tensor]:
    """Return the parameters to measure: by default those of the model that the optimizer steps.

    Raises
    ------
    TypeError
        The model is no module, or the optimizer no optimizer.
    ValueError
        There are none, or a given one cannot be measured.
    """
    check_module("model", model)
    if not (hasattr(optimizer, "param_groups") and callable(getattr(optimizer, "step", None))):
        raise TypeError(f"optimizer must be an optimizer, got {type(optimizer).__name__}")
    if params is not None:
        return checked_params(unwrapped(model), params)
    stepped = {id(param) for group in optimizer.param_groups for param in group["params"]}
    chosen: list[Tensor] = [p for p in model.parameters() if p.requires_grad and id(p) in stepped]
    if not chosen:
        raise ValueError(
            "optimizer steps none of the model's parameters that require a gradient: pass the one "
            "that trains this model"
        )
    return chosen


def checked_state(state: Mapping[str, Any], params: Sequence[Tensor], most: int) -> dict[str, Any]:
    """Return what a Monitor's state holds: the rows of its history, tensors on their device.

    Raises
    ------
    TypeError
        It is no dictionary.
    ValueError
        It is no such state, or of other parameters.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be what Monitor.state_dict() returns, got {state!r}")
    missing = [name for name in _PARTS if name not in state]
    if missing:
        raise ValueError(f"state has no {missing[0]!r}: expected one of Monitor.state_dict()")
    for name, kind in _PARTS.items():
        if not isinstance(state[name], kind):
            raise ValueError(
                f"state has {shortened(repr(state[name]))} as {name!r}: expected what "
                "Monitor.state_dict() has"
            )
    if state["budget"].keys() != set(COUNTS) or not all(map(_is_number, state["budget"].values())):
        raise ValueError(f"the budget in state is not the numbers {', '.join(COUNTS)}")
    if type(state["samples"]) is not int or state["samples"] < 1:
        raise ValueError(f"state has {state['samples']!r} as 'samples': expected an integer ≥ 1")
    history = [_row(index, row) for index, row in enumerate(state["history"])]
    size = sum(param.numel() for param in params)
    for name, vector in state["vectors"].items():
        shape = tuple(getattr(vector, "shape", ()))
        if shape != (size,):
            raise ValueError(
                f"state has an eigenvector {name!r} of shape {shape}, and the parameters have "
                f"{size} elements: it is of another model"
            )
    before = state["before"]
    if before is not None:
        own = [each.shape for each in sampled_weights(params)]
        if [getattr(each, "shape", None) for each in before] != own:
            raise ValueError("state has weights of other shapes: it is of another model")
        before = [each.to(p.device) for each, p in zip(before, params, strict=True)]
    vectors = {name: each.to(params[0].device) for name, each in state["vectors"].items()}
    samples = min(state["samples"], most)
    return {**state, "history": history, "vectors": vectors, "before": before, "samples": samples}


_PARTS: dict[str, Any] = {
    "budget": Mapping,
    "history": list,
    "samples": int,
    "vectors": Mapping,
    "is_next": bool,
    "before": list | None,
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _row(index: int, row: Any) -> RunMeasurement:
    names = {field.name for field in fields(RunMeasurement)}
    if not isinstance(row, Mapping) or row.keys() != names or not isinstance(row["values"], dict):
        raise ValueError(f"row {index} of the history in state is no measurement")
    return RunMeasurement(**row)
