"""Add an optimizer: AdaMax, from its formula to a fused step.

In the package this takes three places: the rule and its scalars go into src/steppe/rules.py, the
class into one file of src/steppe/optim/, and one line into tests/helpers/optimizer_configs.py, by
which the tests of the torch contract, of checkpoints, of number formats and of every engine take
it along. Here all of it is in one script::

    python examples/extending/add_an_optimizer.py
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from steppe._engines import Method, ParamRow, load_state
from steppe.optim._base import RuleOptimizer
from steppe.optim._options import arguments

# 1. The rule: one element's update, in src/steppe/rules.py. `xp` is torch, NumPy or Triton; each
#    engine puts in its own. All arithmetic among scalars is done before, in float64.

xp: Any = None


def adamax(p, g, m, u, lr, keep1, take1, keep2, eps, decay, correction1):
    """AdaMax: p·(1 − lr·wd) − lr·m̂/u, where u is the decaying maximum of |g| + ε."""
    m = m * keep1 + g * take1
    u = xp.maximum(u * keep2, xp.abs(g) + eps)
    return p * decay - m * correction1 / u * lr, m, u


def adamax_scalars(t, lr, betas, eps, weight_decay):
    """Scalars of AdaMax, in the order of its rule."""
    beta1, beta2 = betas
    decay = 1.0 - lr * weight_decay
    return lr, beta1, 1.0 - beta1, beta2, eps, decay, 1.0 / (1.0 - beta1**t)


# 2. The class, in a file of src/steppe/optim/: its options, and which rule they ask for.


class AdaMax(RuleOptimizer):
    """Adam with the infinity norm (Kingma & Ba 2015, arXiv 1412.6980, algorithm 2).

    ::

        m ← β1·m + (1−β1)·g
        u ← max(β2·u, |g| + ε)
        p ← p·(1 − lr·weight_decay) − lr·m/(1 − β1ᵗ)/u
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
        param_error: str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _method(self, group: dict[str, Any]) -> Method:
        return _ADAMAX

    def _preconditioner(self, row: ParamRow) -> Tensor:
        return 1.0 / load_state(row, "exp_inf")

    def diagnostics(self) -> dict[str, float]:
        """Report the largest gradient of late, or nothing before the first step."""
        peaks = [load_state(row, "exp_inf").max().item() for row in self._rows_with_state()]
        return {"largest_gradient": max(peaks)} if peaks else {}


_ADAMAX = Method(adamax, state=("exp_avg", "exp_inf"), scalars=adamax_scalars)


# 3. The line in tests/helpers/optimizer_configs.py would be
#        yield Config("AdaMax", {"lr": 0.01, "weight_decay": 0.1})
#    and beside it, in tests/helpers/float64_reference.py, the paper's formula once more in NumPy.


def reference(start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Follow the paper in float64, written without a look at the rule above."""
    p, m, u = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * g
        u = np.maximum(0.999 * u, np.abs(g) + 1e-8)
        p = p - 0.01 * 0.1 * p - 0.01 / (1 - 0.9**t) * m / u
    return p


def main() -> None:
    """Step it with two engines and in 8 bits."""
    compare_with_reference()
    take_a_step_in_8_bits()


def compare_with_reference() -> None:
    """Take 50 steps with each of two engines."""
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=1000), list(random.normal(size=(50, 1000)))
    expected = reference(start, gradients)
    for engine, fused in (("eager", False), ("cpu", True)):
        p = torch.tensor(start, requires_grad=True)
        optimizer = AdaMax([p], lr=0.01, weight_decay=0.1, fused=fused)
        for g in gradients:
            p.grad = torch.tensor(g)
            optimizer.step()
        assert optimizer.engine == engine
        error = np.abs(p.detach().numpy() - expected).max()
        assert error < 1e-12
        print(f"{engine}: within {error:.0e} of the reference after {len(gradients)} steps")


def take_a_step_in_8_bits() -> None:
    """Keep the state in 8 bits, which no method has to know of: formats are the engines'."""
    p = torch.zeros(4096, requires_grad=True)
    p.grad = torch.ones(4096)
    optimizer = AdaMax([p], lr=0.01, state_dtype="int8")
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].element_size() == 1
    torch.testing.assert_close(p.detach(), torch.full((4096,), -0.01))
    assert abs(optimizer.diagnostics()["largest_gradient"] - 1.0) < 0.01


if __name__ == "__main__":
    main()
