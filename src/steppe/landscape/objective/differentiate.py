"""Differentiate a loss by a model's parameters, and write derivatives as one vector.

Hessian-vector products, directions and trajectories use it.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def derivatives(
    loss: Tensor, params: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Differentiate a loss by parameters: zeros for those that it does not depend on.

    Raises
    ------
    ValueError
        The loss depends on none of them.
    """
    if not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on the parameters: was it detached, or made under no_grad?"
        )
    found = torch.autograd.grad(
        loss, params, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return tuple(grad if grad.layout == torch.strided else grad.to_dense() for grad in found)


def flat_vector(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate the elements of tensors; unlike torch's ``parameters_to_vector``, of any strides.

    Examples
    --------
    >>> flat_vector([torch.ones(1, 2), torch.zeros(1)])
    tensor([1., 1., 0.])
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def narrowest_format(loss: Tensor) -> torch.dtype:
    """Return the format of fewest bits that a loss has been computed in, as its graph shows.

    Examples
    --------
    >>> weight = torch.ones(2, requires_grad=True)
    >>> narrowest_format((weight.bfloat16() * 2).float().sum())
    torch.bfloat16
    """
    narrowest = loss.dtype
    for node in graph_nodes([loss]):
        for metadata in getattr(node, "_input_metadata", ()):
            dtype: torch.dtype = getattr(metadata, "dtype", narrowest)
            if dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(narrowest).eps:
                narrowest = dtype
    return narrowest


def graph_nodes(tensors: Sequence[Tensor]) -> Iterator[torch.autograd.graph.Node]:
    """Yield the nodes of the graph that tensors have been computed by, each once."""
    waiting = [tensor.grad_fn for tensor in tensors]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]
