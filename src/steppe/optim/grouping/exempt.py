"""Which parameters decay no weights: those whose size says nothing of the function's complexity."""

import re

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from steppe.optim.grouping.named import NamedParam

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# LlamaRMSNorm, T5LayerNorm and the like derive from none of torch's.
_OTHER_NORMS = re.compile(r"Norm(\dd)?$")
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Parameters that a module holds itself: bias_ih_l0, relative_position_bias_table; pos_embed,
# position_embeddings, cls_token. They may have two dimensions and more.
_NAMES = re.compile(r"(^|_)bias(_|$)|embed|(^|_)tokens?$")


def is_normalisation(param: NamedParam) -> bool:
    """Whether a normalisation layer holds the parameter: torch's, or one that is called so."""
    return any(
        isinstance(owner, _NORMS) or _OTHER_NORMS.search(type(owner).__name__)
        for owner in param.owners
    )


def is_exempt(param: NamedParam) -> bool:
    """Whether a parameter is a bias, an embedding, of a normalisation, or has one dimension."""
    return (
        param.param.ndim < 2
        or is_normalisation(param)
        or any(isinstance(owner, _EMBEDDINGS) for owner in param.owners)
        or any(_NAMES.search(name.rpartition(".")[2]) for name in param.names)
    )
