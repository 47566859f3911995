"""Muon for a model's hidden matrices and AdamW for its other parameters, in one optimizer.

``steppe compare`` calls it ``muon``. Update rules and state are those of pytorch_optimizer's Muon,
which takes both kinds of parameters but asks which is which.
"""

from collections.abc import Iterable

from pytorch_optimizer import Muon
from torch import Tensor


class MuonWithAdamW(Muon):
    r"""Muon for hidden matrices, AdamW for all else, at one learning rate.

    A matrix W of shape (A, B), with gradient g and momentum m, takes the step::

        m ← μm + (1 − μ)g,   W ← W − η(λW + 0.2·√max(A, B)·NS(μm + (1 − μ)g))

    where NS brings all singular values of a matrix close to 1, by five Newton–Schulz iterations.
    The factor gives the step AdamW's usual size, so that one η and λ do for both (Liu et al. 2025).
    Convolution kernels are flattened to (outputs, inputs · height · width).

    AdamW takes what Muon's author leaves to it: biases, scales of norms and other vectors, and the
    input and output layer. The parameters alone are known, in the order in which the model has
    them, so the first matrix is taken for the input layer (or embedding) and the last one for the
    output layer; a second embedding, as of positions, is taken for a hidden matrix.

    Parameters
    ----------
    params : iterable of Tensor
        The model's parameters, in its order.
    lr : float, default 1e-3
        η.
    weight_decay : float, default 0.1
        λ, decoupled.
    momentum : float, default 0.95
        μ of the matrices. AdamW's betas are (0.9, 0.95).

    References
    ----------
    Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024,
    https://kellerjordan.github.io/posts/muon/; Liu et al., *Muon is Scalable for LLM Training*,
    arXiv 2502.16982.

    Examples
    --------
    >>> import torch
    >>> sizes = (64, 32), (32, 16), (16, 8), (8, 2)
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(*each) for each in sizes))
    >>> hidden, others = MuonWithAdamW(model.parameters()).param_groups
    >>> [tuple(p.shape) for p in hidden["params"]]
    [(16, 32), (8, 16)]
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        params = list(params)
        hidden = [index for index, param in enumerate(params) if _is_matrix(param)][1:-1]
        others = [param for index, param in enumerate(params) if index not in hidden]
        shared = {"lr": lr, "weight_decay": weight_decay}
        groups = [
            {"params": [params[index] for index in hidden], "use_muon": True, **shared},
            {"params": others, "use_muon": False, **shared},
        ]
        super().__init__(
            [group for group in groups if group["params"]], momentum=momentum, use_adjusted_lr=True
        )


def _is_matrix(param: Tensor) -> bool:
    """Return whether it has more than one row and column once all dimensions but one are merged."""
    return param.dim() > 1 and 1 < param.shape[0] < param.numel()
