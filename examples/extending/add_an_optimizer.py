"""Add an optimizer: Lion with a smooth sign, from its formula to a fused step.

In the package this takes three places: the rule and its scalars go into src/steppe/rules.py, the
class into one file of src/steppe/optim/, and one line into tests/helpers/optimizer_configs.py, by
which the tests of the torch contract, of checkpoints, of number formats and of every engine take
it along. Here all of it is in one script::

    python examples/extending/add_an_optimizer.py
"""

import os
import tempfile
from typing import Any

import numpy as np
import torch

from steppe import rules
from steppe._engines import Kernel
from steppe.optim._base import RuleOptimizer, arguments

# 1. The rule: one element's update, in src/steppe/rules.py. `xp` is torch, NumPy or Triton; each
#    engine puts in its own. All arithmetic among scalars is done before, in float64.

xp: Any = None


def lion(p, g, m, lr, keep1, take1, keep2, take2, eps, decay):  # type: ignore[no-untyped-def]
    """Lion: c = β1·m + (1−β1)·g, p·(1 − lr·wd) − lr·c/(|c| + ε), then m of β2."""
    c = m * keep1 + g * take1
    p = p * decay - c / (xp.abs(c) + eps) * lr
    return p, m * keep2 + g * take2


def lion_scalars(t, lr, betas, eps, weight_decay):  # type: ignore[no-untyped-def]
    """Scalars of Lion, in the order of its rule; it does not depend on the step count t."""
    beta1, beta2 = betas
    return lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, 1.0 - lr * weight_decay


# A kernel that is compiled for the CPU finds its rule in steppe.rules, where yours will stand.
rules.lion = lion  # type: ignore[attr-defined]


# 2. The class, in a file of src/steppe/optim/: its options, and which rule they ask for.


class Lion(RuleOptimizer):
    """Sign momentum (Chen et al. 2023, arXiv 2302.06675), with |c| + ε for |c|.

    ::

        c = β1·m + (1−β1)·g
        p ← p·(1 − lr·weight_decay) − lr·c/(|c| + ε)
        m ← β2·m + (1−β2)·g
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        state_dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__(params, arguments(locals()))

    def _kernel(self, group: dict[str, Any]) -> Kernel:
        return _LION


_LION = Kernel(lion, state=("exp_avg",), scalars=lion_scalars)


# 3. The line in tests/helpers/optimizer_configs.py would be
#        yield Config("Lion", {"lr": 0.01, "weight_decay": 0.1})
#    and beside it, in tests/helpers/float64_reference.py, the paper's formula once more in NumPy.


def reference(start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Follow the paper in float64, written without a look at the rule above."""
    p, m = start.copy(), np.zeros_like(start)
    for g in gradients:
        c = 0.9 * m + 0.1 * g
        p = p - 0.01 * (c / (np.abs(c) + 1e-8) + 0.1 * p)
        m = 0.99 * m + 0.01 * g
    return p


def main() -> None:
    """Step it with two engines, and compare with the reference."""
    with tempfile.TemporaryDirectory() as folder:
        # Compiled kernels are kept by the text of rules.py. This rule stands elsewhere: whoever
        # changes it here must not be given the kernel of before.
        os.environ["XDG_CACHE_HOME"] = folder
        compare_with_reference()
        take_a_step_in_8_bits()


def compare_with_reference() -> None:
    """Take 50 steps with each of two engines."""
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=1000), list(random.normal(size=(50, 1000)))
    expected = reference(start, gradients)
    for engine, fused in (("eager", False), ("cpu", True)):
        p = torch.tensor(start, requires_grad=True)
        optimizer = Lion([p], lr=0.01, weight_decay=0.1, fused=fused)
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
    optimizer = Lion([p], lr=0.01, state_dtype="int8")
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].element_size() == 1
    torch.testing.assert_close(p.detach(), torch.full((4096,), -0.01))


if __name__ == "__main__":
    main()
