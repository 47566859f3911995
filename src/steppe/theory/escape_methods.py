"""The four methods that the theory of escape covers, by the optimizers' own rules.

The formula takes P from a rule, and the simulation steps by it, so that neither can disagree with
the optimizers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steppe import rules
from steppe._engines import bind
from steppe._shared.names import look_up
from steppe._shared.validation import check_number, check_positive

Scalars = tuple[float, ...]


@dataclass(frozen=True)
class EscapeMethod:
    """A rule, and how it is called for one parameter.

    Attributes
    ----------
    rule : callable
        A function of :mod:`steppe.rules`.
    adaptive : bool
        Whether the rule has a momentum m, a second moment v and Adam's scalars.
    takes_alpha : bool
        Whether the rule has the weights 1 − α and α of DualAdam.
    """

    rule: Callable[..., Any]
    adaptive: bool = True
    takes_alpha: bool = False

    def scalars(
        self, lr: float, alpha: float | None, *, beta1: float, keep2: float, take2: float
    ) -> Scalars:
        """Return the rule's scalars, without weight decay, ε and bias correction.

        v ← keep2·v + take2·g² is Adam's average; 1 and 0 keep v as it is set from outside.
        """
        if not self.adaptive:
            no_buffered_gradient = 0.0
            return no_buffered_gradient, lr, 0.0, 1.0, 0.0
        adam = (lr, beta1, 1.0 - beta1, keep2, take2, 0.0, 1.0, 1.0, 1.0)
        return (*adam, 1.0 - alpha, alpha) if self.takes_alpha and alpha is not None else adam

    def preconditioner(self, v: float, alpha: float | None) -> float:
        """Return P(v): the length of the rule's step at gradient 1 and learning rate 1."""
        scalars = self.scalars(1.0, alpha, beta1=0.0, keep2=1.0, take2=0.0)
        state = (0.0, v) if self.adaptive else ()
        step: float = -bind(self.rule, math)(0.0, 1.0, *state, *scalars)[0]
        return step


METHODS = {
    "sgd": EscapeMethod(rules.sgd_cg, adaptive=False),
    "adam": EscapeMethod(rules.adam),
    "invadam": EscapeMethod(rules.inv_adam),
    "dualadam": EscapeMethod(rules.dual_adam, takes_alpha=True),
}


def find_method(name: str, alpha: float | None) -> EscapeMethod:
    """Return a method by its name, after a check of α.

    Raises
    ------
    TypeError
        The name is no string, or α no number.
    ValueError
        The name is unknown; or α is missing for "dualadam", outside [0, 1], or given for another
        method.
    """
    method = look_up("method", name, METHODS)
    if not method.takes_alpha:
        if alpha is not None:
            raise ValueError(f"alpha={alpha} is given for {name!r}: only 'dualadam' takes one")
        return method
    if alpha is None:
        raise ValueError("alpha=None: 'dualadam' needs its share of InvAdam, from 0 to 1")
    check_number(alpha=alpha)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    return method


def check_curvatures(h_min: float, h_saddle: float) -> None:
    """Refuse curvatures that are not positive, the saddle's by its magnitude.

    Raises
    ------
    TypeError, ValueError
        A curvature is not positive.
    """
    check_number(h_saddle=h_saddle)
    if h_saddle < 0:
        raise ValueError(
            f"h_saddle={h_saddle} must be positive: the magnitude |h| of the saddle's negative "
            f"curvature, {-h_saddle}"
        )
    check_positive(h_min=h_min, h_saddle=h_saddle)
