"""Choose the parameters that a loss is a function of."""

from collections.abc import Iterable

from torch import Tensor, nn


def checked_params(model: nn.Module, params: Iterable[Tensor] | None) -> list[Tensor]:
    """Return the given parameters of a model, or those that require a gradient.

    Raises
    ------
    ValueError
        A parameter requires no gradient, is complex, does not belong to the model, is given twice,
        or lies on another device; or no parameter is left.
    """
    known = {id(param): name for name, param in model.named_parameters()}
    every: Iterable[Tensor] = (p for p in model.parameters() if p.requires_grad)
    chosen = list(every if params is None else params)
    if not chosen:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to vary")
    seen: set[int] = set()
    for position, param in enumerate(chosen):
        if id(param) not in known:
            raise ValueError(f"params[{position}] is not a parameter of the model")
        if id(param) in seen:
            raise ValueError(f"parameter {known[id(param)]!r} is in params twice")
        seen.add(id(param))
        if param.is_complex():
            raise ValueError(
                f"parameter {known[id(param)]!r} is {param.dtype}: expected real parameters; "
                "torch.view_as_real turns a complex one into real ones"
            )
        if not param.requires_grad:
            raise ValueError(
                f"parameter {known[id(param)]!r} does not require a gradient: "
                "call requires_grad_(True), or leave it out of params"
            )
        if param.device != chosen[0].device:
            raise ValueError(
                f"parameter {known[id(param)]!r} lies on {param.device}, others on "
                f"{chosen[0].device}: choose params on one device"
            )
    return chosen
