"""What SAM reads of its base optimizer's state: the momentum, and the preconditioner.

Both are of this process's parts of parameters, as real numbers, by the parameter. A parameter that
the base has not stepped yet has none.
"""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from steppe._engines import local_part, real
from steppe._shared.torch_preconditioners import KNOWN_CLASSES, preconditioner_reader
from steppe.optim._momenta import MOMENTA


def momenta(base: Any) -> dict[Tensor, Tensor]:
    """Return what the base's next step goes along if the gradient is 0.

    Raises
    ------
    RuntimeError
        A parameter has state and no momentum in it.
    """
    if hasattr(base, "_momenta"):
        known: dict[Tensor, Tensor] = base._momenta()
        return known
    found = {}
    for param, state in _stepped(base):
        moment = next((state[name] for name in MOMENTA if state.get(name) is not None), None)
        if moment is None:
            raise RuntimeError(
                f"direction='momentum' does not fit {type(base).__name__}: the state of a "
                f"parameter of shape {tuple(param.shape)} has neither exp_avg nor momentum_buffer, "
                f"but {', '.join(map(str, state))}"
            )
        found[param] = real(local_part(moment))
    return found


def preconditioners(base: Any) -> dict[Tensor, Tensor]:
    """Return the diagonal that the base multiplies its momenta by.

    Raises
    ------
    ValueError
        It has none that is known: a group was set to a metric that does not fit it.
    """
    check_has_preconditioner(base)
    if hasattr(base, "preconditioner"):
        return {param: local_part(known) for param, known in base.preconditioner().items()}
    read = preconditioner_reader(base)
    assert read is not None
    groups = {id(param): group for group in base.param_groups for param in group["params"]}
    return {param: local_part(read(state, groups[id(param)])) for param, state in _stepped(base)}


def _stepped(base: Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    params = (param for group in base.param_groups for param in group["params"])
    return [(param, state) for param in params if (state := base.state.get(param))]


def check_has_momentum(base: Optimizer) -> None:
    """Refuse a base without a momentum, as its options tell.

    Raises
    ------
    ValueError
        A group has neither ``betas`` nor a ``momentum`` above 0.
    """
    _check_has_state(base, "direction='momentum'")
    for number, group in enumerate(base.param_groups):
        if "betas" not in group and not group.get("momentum"):
            raise ValueError(
                f"direction='momentum' is not valid for {type(base).__name__}, whose group "
                f"{number} has none: expected an optimizer with betas, or with momentum > 0"
            )


def check_has_preconditioner(base: Optimizer) -> None:
    """Refuse a base whose preconditioner is not known.

    Raises
    ------
    ValueError
        It is of another class than those that are, or SGD, which has none.
    """
    _check_has_state(base, "metric='preconditioned'")
    is_sgd = "dampening" in base.defaults
    if is_sgd or not (hasattr(base, "preconditioner") or preconditioner_reader(base) is not None):
        raise ValueError(
            f"metric='preconditioned' is not valid for {type(base).__name__}: expected an "
            f"optimizer of this library that divides by a second moment, or torch.optim's "
            f"{KNOWN_CLASSES}"
        )


def _check_has_state(base: Any, what: str) -> None:
    if hasattr(base, "base_optimizer"):
        raise ValueError(
            f"{what} is not valid around {type(base).__name__}, whose state is not that of these "
            "parameters: expected an optimizer that is no wrapper"
        )
