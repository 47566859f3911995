"""A model's parameters with all that rules ask about them: names and the modules that hold them."""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized


@dataclass(frozen=True)
class NamedParam:
    """A parameter, each of its names, and each module that holds it.

    Attributes
    ----------
    param
        The tensor.
    names
        Its full names in the order of registration; several if modules share it.
    owners
        The modules whose own it is; of a parametrized one also those that parametrize it.
    """

    param: Tensor
    names: list[str] = field(default_factory=list)
    owners: list[Module] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name that checkpoints have: the first."""
        return self.names[0]


def named_params(model: Module) -> list[NamedParam]:
    """Return all parameters of a model, each once, in the order of registration.

    Raises
    ------
    TypeError
        ``model`` is no module.
    ValueError
        It has no parameters, or some of them have no shape yet.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
    found: dict[int, NamedParam] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(param), NamedParam(param)).names.append(name)
    if not found:
        raise ValueError(f"model must have parameters, this {type(model).__name__} has none")
    for each in found.values():
        if is_lazy(each.param):
            raise ValueError(
                f"{each.name} is a parameter of a lazy module and has no shape yet: run a batch "
                "through the model before param_groups"
            )
    for module in model.modules():
        for own in _own(module):
            # FSDP1 names other parameters than its modules hold.
            if id(own) in found:
                found[id(own)].owners.append(module)
    return list(found.values())


def _own(module: Module) -> list[Tensor]:
    own: list[Tensor] = [*module.parameters(recurse=False)]
    if is_parametrized(module) and isinstance(module.parametrizations, Module):
        own.extend(module.parametrizations.parameters())
    return own
