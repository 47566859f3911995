"""What the layers of a model are: modules that hold parameters, those of a type, or one's own."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from steppe.landscape.objective.parameter_choice import Params, checked_params

#: What a layer is; see :func:`~steppe.landscape.by_layer`.
Layers = type[nn.Module] | tuple[type[nn.Module], ...] | Mapping[str, Params]


def layers_of(
    model: nn.Module, params: Sequence[Tensor], layers: Layers | None
) -> dict[str, list[Tensor]]:
    """Sort parameters into layers, by name; see :func:`~steppe.landscape.by_layer`.

    Raises
    ------
    TypeError
        ``layers`` is neither a type of modules nor a mapping.
    ValueError
        There is no layer, or two have the same parameter.
    """
    if isinstance(layers, Mapping):
        return _named(model, params, layers)
    types = layers if isinstance(layers, tuple) else () if layers is None else (layers,)
    if not all(isinstance(each, type) and issubclass(each, nn.Module) for each in types):
        raise TypeError(
            "layers must be a type of modules, as nn.TransformerEncoderLayer, a tuple of types, or "
            f"a mapping from names to what chooses parameters; got {layers!r}"
        )
    if types and not any(isinstance(module, types) for module in model.modules()):
        shown = ", ".join(each.__name__ for each in types)
        there = sorted({type(module).__name__ for module in model.modules()})
        raise ValueError(f"the model has no module of type {shown}: there are {', '.join(there)}")
    layer_of: dict[int, str] = {}
    # Outer modules come before inner ones, so a module of a type takes all that is inside.
    for name, module in model.named_modules():
        is_whole = isinstance(module, types)
        for part, param in module.named_parameters(recurse=is_whole):
            # What the model itself holds, as a position embedding, belongs to no layer of others.
            layer_of.setdefault(id(param), name or part)
    found: dict[str, list[Tensor]] = {}
    for param in params:
        found.setdefault(layer_of[id(param)], []).append(param)
    return found


def _named(
    model: nn.Module, params: Sequence[Tensor], layers: Mapping[str, Params]
) -> dict[str, list[Tensor]]:
    allowed = {id(param) for param in params}
    taken: dict[int, str] = {}
    found: dict[str, list[Tensor]] = {}
    for name, choice in layers.items():
        if not isinstance(name, str):
            raise TypeError(f"layers must map names to what chooses parameters, got {name!r}")
        found[name] = [each for each in checked_params(model, choice) if id(each) in allowed]
        if not found[name]:
            raise ValueError(f"layer {name!r} has none of the parameters that params chooses")
        for each in found[name]:
            if id(each) in taken:
                raise ValueError(
                    f"layers {taken[id(each)]!r} and {name!r} have the same parameter: expected "
                    "each in one layer"
                )
            taken[id(each)] = name
    if not found:
        raise ValueError("layers is empty: expected a layer or more")
    return found
