"""Checkpoints of torch's optimizers: in mid-run people switch from Adam, SGD or RMSprop.

Their moments are those of the methods here, by the same names, so a run goes on from them with an
empty buffer. A checkpoint whose numbers would mean something else is refused.
"""

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any, NamedTuple

from steppe._engines import KEYS, Group
from steppe.optim._options import OPTION_CHECKS
from steppe.optim._state import as_step_count

#: Options of buffers, of updates that switch, and of integrals.
_BUFFERS = frozenset(
    {"capacity", "priority_decay", "kappa", "scope", "replacement", "variant", "aggregation"}
)
_SWITCHES = frozenset({"switch_rate", "scale_free"})
_INTEGRALS = frozenset({"integration_order", "integration_rate"})
#: Options that only this library's groups have.
_OURS = _BUFFERS | _SWITCHES | _INTEGRALS | {"state_dtype", "param_error"}
#: How to step, and not what: it stays that of the optimizer that loads.
_EXECUTION = frozenset({"fused", "capturable", "differentiable"})
#: What tells groups whose rules begin with Adam, SGD or RMSprop from each other.
_TELLTALES = frozenset({"betas", "dampening", "centered"})
#: What torch's groups have besides.
_THEIRS = frozenset({"foreach", "nesterov", "decoupled_weight_decay", "amsgrad"})


class Family(NamedTuple):
    """Optimizers of torch whose state methods of this library can go on with.

    Attributes
    ----------
    names
        The optimizers, for messages.
    options
        What is in their groups, and together in no others'.
    has_steps
        Whether they count steps.
    """

    names: str
    options: frozenset[str]
    has_steps: bool = True


_ADAM = Family("Adam or AdamW", frozenset({"betas", "eps", "weight_decay", "amsgrad"}))
_SGD = Family(
    "SGD", frozenset({"momentum", "dampening", "weight_decay", "nesterov"}), has_steps=False
)
_RMSPROP = Family("RMSprop", frozenset({"alpha", "eps", "momentum", "centered", "weight_decay"}))


def _family_of(names: Collection[str]) -> Family:
    """Return whose state an optimizer with these options can go on with."""
    if "betas" in names:
        return _ADAM
    return _RMSPROP if "alpha" in names else _SGD


def is_torchs(saved: Group) -> bool:
    """Whether a checkpoint's group is of an optimizer of torch."""
    return not _OURS & saved.keys() and bool(_THEIRS & saved.keys())


def check_method(
    saved: Group, states: Sequence[Mapping[str, Any]], names: Collection[str], where: str
) -> None:
    """Refuse a checkpoint of another optimizer of this library, whose state means something else.

    One option may be missing, as from a checkpoint that is older than the option.

    Parameters
    ----------
    saved
        A group in the checkpoint.
    states
        Those of its parameters.
    names
        Of this optimizer's options.
    where
        Names the group.

    Raises
    ------
    ValueError
        It has none of the options that this optimizer has added to torch's, or none of torch's
        where it has added none; or its buffers are of another kind.
    """
    kinds = (_BUFFERS, _INTEGRALS, _SWITCHES, _family_of(names).options)
    added = next(filter(None, (kind.intersection(names) for kind in kinds)))
    found, expected = _TELLTALES & saved.keys(), _TELLTALES.intersection(names)
    is_integrated = _INTEGRALS.isdisjoint(names) and _INTEGRALS & saved.keys()
    if is_integrated or not added & saved.keys() or (found and not found & expected):
        raise ValueError(_other_optimizer(where, names))
    if not any(KEYS in state for state in states):
        return
    if "capacity" not in names:
        raise ValueError(f"{where} has buffers of critical momenta or gradients")
    # Only this option tells gradients from momenta.
    holds_gradients = OPTION_CHECKS["aggregation"].accepts(saved.get("aggregation"))
    if holds_gradients and "aggregation" not in names:
        raise ValueError(f"the buffers of {where} hold gradients, expected momenta")
    is_sgd = _family_of(names) is _SGD
    may_be_momenta = "variant" in saved or (is_sgd and any("momentum_buffer" in x for x in states))
    if "aggregation" in names and "aggregation" not in saved and may_be_momenta:
        raise ValueError(
            f"option 'aggregation' of {where} is missing, as in checkpoints whose buffers hold "
            "momenta. If these hold gradients, set it in the checkpoint's param_groups"
        )


def warm_started_group(saved: Group, own: Group, names: Collection[str], where: str) -> Group:
    """Return the options with which to go on from a group of torch's optimizer.

    Those that both have are the checkpoint's; how to step, and what torch does not know, stays this
    optimizer's own.

    Parameters
    ----------
    saved
        The group in the checkpoint.
    own
        That of the optimizer.
    names
        Of this optimizer's options.
    where
        Names the group.

    Raises
    ------
    ValueError
        It is of another optimizer than those that this one goes on from, or its weight decay
        means something else.
    """
    family = _family_of(names)
    if not family.options <= saved.keys():
        raise ValueError(_other_optimizer(where, names))
    if family is _ADAM and saved["weight_decay"] != 0:
        _check_weight_decay(saved, where)
    taken = {k: v for k, v in saved.items() if k in names or k not in _THEIRS | _EXECUTION}
    return taken | {name: own[name] for name in names if name in _EXECUTION | _OURS}


def warm_started_state(
    state: dict[str, Any], names: Collection[str], wanted: Container[str]
) -> dict[str, Any]:
    """Return a state of torch's optimizer as one of this library's.

    SGD does not count steps; its momentum buffer has taken one at least. AMSGrad's maximum is left
    out where this optimizer has none.
    """
    state = {
        name: value
        for name, value in state.items()
        if value is not None and (name in wanted or name != "max_exp_avg_sq")
    }
    if state and not _family_of(names).has_steps:
        state.setdefault("step", as_step_count(1))
    return state


def _other_optimizer(where: str, names: Collection[str]) -> str:
    return (
        f"the options of {where} are of another optimizer: expected a checkpoint of this one, or "
        f"of torch's {_family_of(names).names}"
    )


def _check_weight_decay(saved: Group, where: str) -> None:
    """Refuse Adam's L2 penalty: the same number decays weights otherwise when it is decoupled."""
    decay = saved["weight_decay"]
    if "decoupled_weight_decay" not in saved:
        raise ValueError(
            f"weight_decay={decay!r} of {where} may be AdamW's or Adam's, which is an L2 penalty "
            "and not decoupled: the checkpoint is of an older torch and does not say. If it is "
            "AdamW's, set decoupled_weight_decay=True in its param_groups; if Adam's, set "
            "weight_decay to what this optimizer is to go on with as well"
        )
    if not saved["decoupled_weight_decay"]:
        raise ValueError(
            f"weight_decay={decay!r} of {where} is an L2 penalty, as Adam's is, and this "
            "optimizer's is decoupled, as AdamW's is: set weight_decay to what it is to go on with "
            "and decoupled_weight_decay=True in the checkpoint's param_groups"
        )
