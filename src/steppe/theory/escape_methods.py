"""The four methods that the theory of escape knows, as the rules that they are."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steppe import rules
from steppe._engines import bind
from steppe._shared.names import named
from steppe._shared.validation import check_number, check_positive

Scalars = tuple[float, ...]


@dataclass(frozen=True)
class Method:
    """A rule, and how it is called on one parameter.

    Attributes
    ----------
    rule
        A function of :mod:`steppe.rules`.
    adaptive
        Whether the rule keeps m and v, and has Adam's scalars.
    two_way
        Whether it is given 1 − α and α.
    """

    rule: Callable[..., Any]
    adaptive: bool = True
    two_way: bool = False

    def scalars(
        self, lr: float, alpha: float | None, *, beta1: float, keep2: float, take2: float
    ) -> Scalars:
        """Return the scalars of the rule: no weight decay, ε, nor bias correction."""
        if not self.adaptive:
            nothing_remembered = 0.0
            return nothing_remembered, lr, 0.0, 1.0, 0.0
        adam = (lr, beta1, 1.0 - beta1, keep2, take2, 0.0, 1.0, 1.0, 1.0)
        return (*adam, 1.0 - alpha, alpha) if self.two_way and alpha is not None else adam

    def preconditioner(self, v: float, alpha: float | None) -> float:
        """Return P(v): how far the rule steps at gradient 1 and learning rate 1."""
        scalars = self.scalars(1.0, alpha, beta1=0.0, keep2=1.0, take2=0.0)
        state = (0.0, v) if self.adaptive else ()
        step: float = -bind(self.rule, math)(0.0, 1.0, *state, *scalars)[0]
        return step


METHODS = {
    "sgd": Method(rules.sgd_cg, adaptive=False),
    "adam": Method(rules.adam),
    "invadam": Method(rules.inv_adam),
    "dualadam": Method(rules.dual_adam, two_way=True),
}


def find_method(name: str, alpha: float | None) -> Method:
    """Return a method by its name, if α is as it wants it.

    Raises
    ------
    TypeError
        The name is no string, or α no number.
    ValueError
        There is none of that name; α is missing, out of [0, 1], or given to another.
    """
    method = named("method", name, METHODS)
    if not method.two_way:
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
        One is not.
    """
    check_number(h_saddle=h_saddle)
    if h_saddle < 0:
        raise ValueError(
            f"h_saddle={h_saddle} must be positive: the magnitude |h| of the saddle's negative "
            f"curvature, {-h_saddle}"
        )
    check_positive(h_min=h_min, h_saddle=h_saddle)
