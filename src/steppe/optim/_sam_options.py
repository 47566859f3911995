"""SAM's options, its own and its groups', and the base optimizers that they fit."""

import reprlib
from typing import Any

from torch.nn import Module
from torch.optim import AdamW, Optimizer

from steppe.optim._checkpoint import check_kinds
from steppe.optim._optimizer_wrapper import check_step
from steppe.optim._options import check_options, to_plain
from steppe.optim._sam_base_state import check_has_momentum, check_has_preconditioner
from steppe.optim._sam_perturbations import DEFAULT_RHO, rho_name


def check_sam_options(options: dict[str, Any], direction: str, where: str = "") -> None:
    """Check SAM's own options. The base optimizer, perhaps not of this library, checks the rest.

    Raises
    ------
    ValueError
        One is out of its range; ``where`` says in the message whose it is.
    """
    metric = to_plain(options["metric"])
    if direction == "random" and metric == "preconditioned":
        raise ValueError(
            f"metric='preconditioned' is not valid with direction='random'{where}: expected "
            "'euclidean' or 'adaptive'"
        )
    rho = to_plain(options[rho_name(options)])
    check_options({"rho": rho, "metric": metric}, where=where, in_a_run=direction == "momentum")


def with_rho(
    group: dict[str, Any], own: dict[str, Any], direction: str, *, is_default: bool
) -> dict[str, Any]:
    """Return SAM's options and a group's: who names a metric alone has the metric's default ρ.

    Parameters
    ----------
    group
        With its options.
    own
        The constructor's ρ and metric, which groups have that name none.
    direction
        SAM's.
    is_default
        Whether the constructor was given no ρ.
    """
    if not is_default:
        return {**own, **group}
    rho, metric = rho_name(own), group.get("metric", own["metric"])
    return {**own, rho: DEFAULT_RHO.get((direction, metric), own[rho]), **group}


def checked_groups(
    base: Optimizer, own: dict[str, Any], direction: str, *, is_default: bool
) -> list[dict[str, Any]]:
    """Return an optimizer's groups with SAM's options, as :func:`with_rho` completes them.

    Raises
    ------
    ValueError
        An option is out of its range, or does not fit the optimizer.
    """
    groups = [
        with_rho(with_metric(group), own, direction, is_default=is_default)
        for group in base.param_groups
    ]
    for options in (own, *groups):
        check_sam_options(options, direction)
        check_fits(direction, options["metric"], base)
    return groups


def with_metric(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group with ``metric`` in the place of ``adaptive``, its name for one of them."""
    if "adaptive" not in group:
        return dict(group)
    found = {name: value for name, value in group.items() if name != "adaptive"}
    is_adaptive = group["adaptive"]
    if not isinstance(is_adaptive, bool):
        raise ValueError(f"adaptive={is_adaptive!r} is not valid: expected True or False")
    return {"metric": "adaptive" if is_adaptive else "euclidean", **found}


def metric_of(metric: str, *, adaptive: bool) -> Any:
    """Return the metric that two arguments name together.

    Raises
    ------
    ValueError
        It is none, or they contradict each other.
    """
    check_options({"metric": metric})
    if not adaptive:
        return metric
    if metric == "preconditioned":
        raise ValueError(
            "adaptive=True is not valid with metric='preconditioned': expected one of the two"
        )
    return "adaptive"


def first_step_of(start: float, total_steps: int | None) -> int:
    """Return the first step that perturbs, from 0: the share ``start`` of the run lies before.

    Raises
    ------
    ValueError
        One is out of its range, or ``start`` is a share of nothing.
    """
    check_options({"start": start, "total_steps": total_steps})
    if start == 0:
        return 0
    if total_steps is None:
        raise ValueError(
            f"start={start!r} is not valid without total_steps: expected the number of steps of "
            "the run, of which start is a share"
        )
    # Of a share of nearly 1 the last step is perturbed.
    return min(round(start * total_steps), total_steps - 1)


def check_no_other(base: Any, base_options: dict[str, Any]) -> None:
    """Refuse a class or options beside an optimizer that is there already.

    Raises
    ------
    ValueError
        There is a class.
    TypeError
        There are options, as Python says of arguments that a function does not have.
    """
    if base is not AdamW:
        raise ValueError(
            f"base={base!r} is not valid beside an optimizer: expected it with parameters; rho and "
            "the other options are given by name"
        )
    if base_options:
        name, value = next(iter(base_options.items()))
        raise TypeError(
            f"{name}={value!r} is not valid beside an optimizer: expected it among the options of "
            "that optimizer"
        )


def check_fits(direction: str, metric: str, base_optimizer: Optimizer) -> None:
    """Refuse a base that lacks what a direction or a metric needs.

    Raises
    ------
    ValueError
        It has no momentum, or no preconditioner that is known.
    """
    if direction == "momentum":
        check_has_momentum(base_optimizer)
    if metric == "preconditioned":
        check_has_preconditioner(base_optimizer)


def check_base(base_optimizer: Any) -> None:
    """Refuse what cannot be a base: no optimizer, one that needs a closure, or a SAM.

    Raises
    ------
    TypeError
        It is none, or its step needs arguments.
    ValueError
        It is a SAM, or in one.
    """
    if not isinstance(base_optimizer, Optimizer):
        raise TypeError(
            f"base made {reprlib.repr(base_optimizer)}, which is not an optimizer: expected the "
            "class of one"
        )
    check_step(base_optimizer, "SAM")
    if "metric" in base_optimizer.defaults:
        raise ValueError(
            f"params_or_optimizer={type(base_optimizer).__name__} has an option 'metric': it is "
            "a SAM or in one already; expected an optimizer that is not"
        )


def check_module(module: Any, base_optimizer: Optimizer) -> None:
    """Refuse a module that is none, or not the one that is trained.

    Raises
    ------
    TypeError
        It is no module.
    ValueError
        It holds none of the optimizer's parameters.
    """
    if module is None:
        return
    if not isinstance(module, Module):
        raise TypeError(
            f"module={reprlib.repr(module)} is not valid: expected the torch.nn.Module that is "
            "trained, or None"
        )
    params = {id(param) for group in base_optimizer.param_groups for param in group["params"]}
    if not any(id(param) in params for param in module.parameters()):
        raise ValueError(
            f"module={type(module).__name__} holds none of the optimizer's parameters: expected "
            "the model that is trained"
        )


def fitted_groups(
    state_dict: dict[str, Any], base: Optimizer, direction: str
) -> list[dict[str, Any]]:
    """Return the groups of a SAM's checkpoint; one from before SAM had metrics says adaptive.

    Raises
    ------
    ValueError
        They are no SAM's, out of range, or do not fit the base.
    """
    refuse = "checkpoint does not fit SAM: "
    check_kinds(state_dict, refuse)
    groups = [with_metric(group) for group in state_dict["param_groups"]]
    for index, group in enumerate(groups):
        for name in (rho_name(base.defaults), "metric"):
            if name not in group:
                raise ValueError(f"{refuse}option {name!r} of group {index} is missing")
        check_sam_options(group, direction)
        check_fits(direction, group["metric"], base)
    return groups
