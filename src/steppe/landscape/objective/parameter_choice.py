"""Which of a model's parameters a loss is a function of: all of them, or those that are chosen.

They are chosen one by one, by their names, by their modules or these modules' types, or by a
function.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

from torch import Tensor, nn

#: What chooses some of a model's parameters; see :func:`~steppe.landscape.hessian`.
Selector = str | re.Pattern[str] | nn.Module | type[nn.Module] | Callable[[str, Tensor], bool]

#: Parameters themselves, or what chooses some.
Params = Selector | Iterable[Tensor | Selector]

_NAMES_SHOWN = 5


def checked_params(model: nn.Module, params: Params | None) -> list[Tensor]:
    """Return the chosen parameters of a model, or those that require a gradient.

    Raises
    ------
    TypeError
        ``params`` is nothing that chooses parameters.
    ValueError
        A parameter requires no gradient, is complex, does not belong to the model, is given twice,
        or lies on another device; no parameter is left; or a selector chooses none.
    """
    known = {id(param): name for name, param in model.named_parameters()}
    chosen = _chosen(model, params)
    if not chosen:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to vary")
    seen: set[int] = set()
    for position, param in enumerate(chosen):
        if id(param) not in known:
            raise ValueError(
                f"params[{position}] is not a parameter of the model: where layers or parameters "
                "have been exchanged (load_state_dict(assign=True)), make the operator anew"
            )
        if id(param) in seen:
            raise ValueError(f"parameter {known[id(param)]!r} is in params twice")
        seen.add(id(param))
        _check_usable(known[id(param)], param)
        if param.device != chosen[0].device:
            raise ValueError(
                f"parameter {known[id(param)]!r} lies on {param.device}, others on "
                f"{chosen[0].device}: choose params on one device"
            )
    return chosen


def _check_usable(name: str, param: Tensor) -> None:
    if param.is_complex():
        raise ValueError(
            f"parameter {name!r} is {param.dtype}: expected real parameters; "
            "torch.view_as_real turns a complex one into real ones"
        )
    if not param.requires_grad:
        raise ValueError(
            f"parameter {name!r} does not require a gradient: "
            "call requires_grad_(True), or leave it out of params"
        )
    if param.is_meta:
        raise ValueError(
            f"parameter {name!r} lies on the meta device, where there are no "
            "numbers: expected a model that has been initialised on another one"
        )


def _chosen(model: nn.Module, params: Params | None) -> list[Tensor]:
    """Return what is given or chosen, in that order; of one selector in the model's."""
    if params is None:
        return [param for param in model.parameters() if param.requires_grad]
    if _is_selector(params):
        return _selected(model, params, "params")
    if isinstance(params, Tensor | Mapping | type) or not isinstance(params, Iterable):
        raise TypeError(
            "params must be a list of the model's parameters, or choose some by a name, a regular "
            "expression, a module, a type of modules, or a function of name and parameter; got "
            f"{params if isinstance(params, type) else type(params).__name__}"
        )
    chosen: list[Tensor] = []
    for position, each in enumerate(params):
        if isinstance(each, Tensor):
            chosen.append(each)
            continue
        if not _is_selector(each):
            raise TypeError(
                f"params[{position}] must be a parameter of the model, or choose some, got "
                f"{type(each).__name__}: of named_parameters() and of an optimizer's groups take "
                "the parameters alone"
            )
        # Two selectors that choose the same parameter do not contradict each other.
        there = {id(param) for param in chosen}
        found = _selected(model, each, f"params[{position}]")
        chosen += [param for param in found if id(param) not in there]
    return chosen


def _is_selector(value: object) -> bool:
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    if isinstance(value, re.Pattern):
        return isinstance(value.pattern, str)
    return not isinstance(value, Tensor) and (isinstance(value, str) or callable(value))


def _selected(model: nn.Module, selector: object, where: str) -> list[Tensor]:
    """Return the parameters that a selector chooses, in the model's order, without frozen ones."""
    chooses = _test_of(model, selector, where)
    # A parameter that several modules share has several names.
    named = list(model.named_parameters(remove_duplicate=False))
    found = {id(param): param for name, param in named if chooses(name, param)}
    usable: list[Tensor] = [param for param in found.values() if param.requires_grad]
    if usable:
        return usable
    start = f"{where}={_described(selector)}"
    if found:
        raise ValueError(
            f"{start} chooses none but parameters that require no gradient: call "
            "requires_grad_(True) on them, or choose others"
        )
    raise ValueError(f"{start} chooses no parameter: {_known(selector, [n for n, _ in named])}")


def _test_of(model: nn.Module, selector: object, where: str) -> Callable[[str, Tensor], object]:
    """Return what is true of the names and parameters that a selector chooses."""
    if isinstance(selector, nn.Module):
        return _is_inside([selector])
    if isinstance(selector, type):
        return _is_inside(each for each in model.modules() if isinstance(each, selector))
    if isinstance(selector, str):
        if not selector:
            raise ValueError(f"{where}='' is empty: expected a name or a regular expression")
        parts = {name for name, _ in model.named_modules(remove_duplicate=False)}
        parts |= {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if selector in parts:
            return lambda name, _: name == selector or name.startswith(f"{selector}.")
        try:
            selector = re.compile(selector)
        except re.error as error:
            raise ValueError(
                f"{where}={selector!r} is neither the name of a parameter or module nor a regular "
                f"expression: {error}; re.escape(name) makes one of a name"
            ) from None
    if isinstance(selector, re.Pattern):
        pattern = selector
        return lambda name, _: pattern.search(name)
    assert callable(selector)
    return selector


def _is_inside(modules: Iterable[nn.Module]) -> Callable[[str, Tensor], bool]:
    inside = {id(param) for module in modules for param in module.parameters()}
    return lambda _, param: id(param) in inside


def _described(selector: object) -> str:
    if isinstance(selector, str | re.Pattern):
        return repr(selector)
    if isinstance(selector, nn.Module):
        return f"{type(selector).__name__}(…)"
    name: str = getattr(selector, "__name__", type(selector).__name__)
    return name


def _known(selector: object, names: list[str]) -> str:
    """Say which names there are, those that are near to a wrong one first."""
    if isinstance(selector, str):
        near = get_close_matches(selector, names, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        how = "a text is the name of a parameter or module, or is searched in all names. "
    else:
        guess, how = "", ""
    rest = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{how}{guess}There are {', '.join(names[:_NAMES_SHOWN])}{rest}"
