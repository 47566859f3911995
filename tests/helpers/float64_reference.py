"""Float64 NumPy references for every optimizer, written from the papers and not from our code.

They are what the engines are tested against, so they are as plain as possible: one loop over the
parameters, the slots of a buffer a Python list of arrays, their mean taken afresh each step.

- DualAdam, InvAdam: Shi, Chen, Jin, Zhou, arXiv 2603.07122.
- MIAdam: Jin, Nong, Chen, Su, AAAI 2025, arXiv 2412.12473.
- Critical momenta (CM): Malviya et al., TMLR 2024, arXiv 2307.09638.
- Critical gradients (CG): McRae et al., ICLR 2022, arXiv 2106.10708.
- SAM: Foret et al., arXiv 2010.01412; ASAM: Kwon et al., arXiv 2102.11600.

``reference("AdamCM", params, lr=1e-2).step(grads)``: a gradient of ``None`` sits the step out.
Options are public attributes, so a schedule may set ``ref.lr`` between steps.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Buffer:
    """The critical buffer of one parameter: at most ``capacity`` slots, one key a slot.

    ``born[s]`` is the count of offers after which slot ``s`` was written: the smallest is the
    oldest.
    """

    def __init__(self, capacity: int, priority_decay: float, replacement: str) -> None:
        if replacement not in ("priority", "fifo"):
            raise ValueError(f"unknown replacement {replacement!r}")
        self.capacity = capacity
        self.priority_decay = priority_decay
        self.replacement = replacement
        self.slots: list[Array] = []
        self.keys: list[float] = []
        self.born: list[int] = []
        self.offers = 0

    def mean(self) -> Array:
        return np.asarray(np.mean(self.slots, axis=0))

    def sum(self) -> Array:
        return np.asarray(np.sum(self.slots, axis=0))

    def offer(self, item: Array, priority: float) -> None:
        """Take steps 5 and 6 of critical momenta: store the item or not, then decay every key."""
        self.offers += 1
        if math.isfinite(priority) and self.capacity > 0:
            if len(self.slots) < self.capacity:
                self.slots.append(np.array(item))
                self.keys.append(priority)
                self.born.append(self.offers)
            elif self.replacement == "fifo":
                self._replace(self.born.index(min(self.born)), item, priority)
            else:
                # Keys that tie: the first slot is the smallest.
                smallest = self.keys.index(min(self.keys))
                if priority > self.keys[smallest]:
                    self._replace(smallest, item, priority)
        self.keys = [self.priority_decay * key for key in self.keys]

    def _replace(self, s: int, item: Array, priority: float) -> None:
        self.slots[s] = np.array(item)
        self.keys[s] = priority
        self.born[s] = self.offers


def norm(arrays: Sequence[Array]) -> float:
    """Return the L2 norm over all the arrays together."""
    return math.sqrt(sum(float(np.sum(a * a)) for a in arrays))


class Reference:
    """What every reference shares: float64 copies of the parameters and their step counts."""

    def __init__(self, params: Sequence[Any], lr: float, maximize: bool) -> None:
        self.params: list[Array] = [np.array(p, dtype=np.float64) for p in params]
        self.t = [0 for _ in self.params]
        self.lr = lr
        self.maximize = maximize

    def zeros(self) -> list[Array]:
        return [np.zeros_like(p) for p in self.params]

    def step(self, grads: Sequence[Any]) -> None:
        """Advance every parameter that has a gradient by one step."""
        if len(grads) != len(self.params):
            raise ValueError(f"{len(grads)} gradients for {len(self.params)} parameters")
        signed: list[Array | None] = []
        for g, p in zip(grads, self.params, strict=True):
            if g is None:
                signed.append(None)
                continue
            g = np.array(g, dtype=np.float64)
            if g.shape != p.shape:
                raise ValueError(f"gradient of shape {g.shape} for parameter of shape {p.shape}")
            signed.append(-g if self.maximize else g)
        # Non-finite gradients are part of what is tested; NumPy need not warn of them.
        with np.errstate(all="ignore"):
            self.update(signed)

    def update(self, grads: list[Array | None]) -> None:
        raise NotImplementedError


class Buffered(Reference):
    """A reference with one buffer a parameter."""

    def __init__(
        self,
        params: Sequence[Any],
        lr: float,
        maximize: bool,
        capacity: int,
        priority_decay: float,
        kappa: float,
        scope: str,
        replacement: str,
    ) -> None:
        super().__init__(params, lr, maximize)
        if scope not in ("global", "tensor"):
            raise ValueError(f"unknown scope {scope!r}")
        self.kappa = kappa
        self.scope = scope
        self.buffers = [Buffer(capacity, priority_decay, replacement) for _ in self.params]

    def slots(self, i: int) -> list[Array]:
        """Return copies of the filled slots of parameter ``i``, in slot order."""
        return [np.array(slot) for slot in self.buffers[i].slots]

    def keys(self, i: int) -> list[float]:
        """Return the keys of the filled slots of parameter ``i``, in slot order."""
        return list(self.buffers[i].keys)

    def priorities(self, grads: list[Array | None]) -> list[float]:
        """‖g‖₂ over all parameters with a gradient (``scope="global"``), or over each alone."""
        if self.scope == "global":
            everything = norm([g for g in grads if g is not None])
            return [everything for _ in grads]
        return [math.nan if g is None else norm([g]) for g in grads]

    def with_mean(self, i: int, x: Array) -> Array:
        """Return x + κ · mean(filled slots); x while the buffer is empty."""
        if not self.buffers[i].slots:
            return x
        return x + self.kappa * self.buffers[i].mean()


class InvAdam(Reference):
    """p ← p − lr · m̂·d (arXiv 2603.07122)."""

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, maximize)
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.m = self.zeros()
        self.v = self.zeros()

    def update(self, grads: list[Array | None]) -> None:
        beta1, beta2 = self.betas
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            t = self.t[i]
            p = self.params[i] * (1 - self.lr * self.weight_decay)
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g**2
            m_hat = self.m[i] / (1 - beta1**t)
            v_hat = self.v[i] / (1 - beta2**t)
            d = np.sqrt(v_hat) + self.eps
            self.params[i] = np.asarray(p - self.lr * m_hat * d)


class DualAdam(Reference):
    """p ← p − lr · [(1−α)·m̂/d + α·m̂·d], α = max(0, 1 − ξ·t) (arXiv 2603.07122).

    ``scale_free``, which is ours: with r = √mean(v̂) + ε and q = d/r,
    p ← p − lr · (m̂/r)·[(1−α)/q + α·q].
    """

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        switch_rate: float = 8e-5,
        scale_free: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, maximize)
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.switch_rate = switch_rate
        self.scale_free = scale_free
        self.m = self.zeros()
        self.v = self.zeros()

    def update(self, grads: list[Array | None]) -> None:
        beta1, beta2 = self.betas
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            t = self.t[i]
            alpha = max(0.0, 1 - self.switch_rate * t)
            p = self.params[i] * (1 - self.lr * self.weight_decay)
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g**2
            m_hat = self.m[i] / (1 - beta1**t)
            v_hat = self.v[i] / (1 - beta2**t)
            d = np.sqrt(v_hat) + self.eps
            if self.scale_free:
                # An empty tensor has no mean, and nothing to move either.
                mean = np.mean(v_hat) if p.size > 0 else 0.0
                r = np.sqrt(mean) + self.eps
                q = d / r
                update = (m_hat / r) * ((1 - alpha) / q + alpha * q)
            else:
                update = (1 - alpha) * m_hat / d + alpha * m_hat * d
            self.params[i] = np.asarray(p - self.lr * update)


class MIAdam(Reference):
    """Adam along the n-th integral of the momentum until step ζ, then along the momentum.

    m̄⁽⁰⁾ = m, m̄⁽ʲ⁾ ← κ·m̄⁽ʲ⁾ + m̄⁽ʲ⁻¹⁾; p ← p − lrⁿ · m̄⁽ⁿ⁾/(1 − β1ᵗ)/(√v̂ + ε) while t < ζ
    (arXiv 2412.12473). ``switch_rate`` is 1/ζ.
    """

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        switch_rate: float = 8e-5,
        integration_order: int = 2,
        integration_rate: float = 0.9,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, maximize)
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.zeta = round(1 / switch_rate)
        self.order = integration_order
        self.rate = integration_rate
        self.m = self.zeros()
        self.v = self.zeros()
        self.integrals = [[np.zeros_like(p) for _ in range(self.order)] for p in self.params]

    def update(self, grads: list[Array | None]) -> None:
        beta1, beta2 = self.betas
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            t = self.t[i]
            p = self.params[i] * (1 - self.lr * self.weight_decay)
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g**2
            below = self.m[i]
            for j in range(self.order):
                below = self.integrals[i][j] = self.rate * self.integrals[i][j] + below
            d = np.sqrt(self.v[i] / (1 - beta2**t)) + self.eps
            if t < self.zeta:
                step = self.lr**self.order * (below / (1 - beta1**t)) / d
            else:
                step = self.lr * (self.m[i] / (1 - beta1**t)) / d
            self.params[i] = np.asarray(p - step)


class AdamCM(Buffered):
    """Adam with critical momenta (arXiv 2307.09638).

    a = m̂ + κ·mean(slots), v ← β2·v + (1−β2)·a², p ← p − lr · a/(√v̂ + ε), m̂ stored.

    ``variant="authors"`` is their released code: at t = 1 the raw gradient is stored and only
    weight decay moves the parameter; from t = 2, a = m + κ·mean(slots), m is stored, and the
    step is lr/(1−β1ᵗ) · a/(√v̂ + ε).
    """

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        capacity: int = 5,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: str = "global",
        replacement: str = "priority",
        variant: str = "consistent",
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, maximize, capacity, priority_decay, kappa, scope, replacement)
        if variant not in ("consistent", "authors"):
            raise ValueError(f"unknown variant {variant!r}")
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.amsgrad = amsgrad
        self.variant = variant
        self.m = self.zeros()
        self.v = self.zeros()
        self.v_max = self.zeros()

    def direction(self, a: Array, d: Array, t: int) -> Array:
        """Return what is multiplied by the learning rate: a/d."""
        return a / d

    def update(self, grads: list[Array | None]) -> None:
        beta1, beta2 = self.betas
        priorities = self.priorities(grads)
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            t = self.t[i]
            p = self.params[i] * (1 - self.lr * self.weight_decay)

            if self.variant == "authors" and t == 1:
                # m and v stay zero. Their code decays the keys after this step too.
                self.buffers[i].offer(g, priorities[i])
                self.params[i] = np.asarray(p)
                continue

            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
            if self.variant == "authors":
                item = self.m[i]
                lr = self.lr / (1 - beta1**t)
            else:
                item = self.m[i] / (1 - beta1**t)
                lr = self.lr
            a = self.with_mean(i, item)

            self.v[i] = beta2 * self.v[i] + (1 - beta2) * a**2
            self.v_max[i] = np.maximum(self.v_max[i], self.v[i])
            v = self.v_max[i] if self.amsgrad else self.v[i]
            v_hat = v / (1 - beta2**t)
            d = np.sqrt(v_hat) + self.eps

            self.params[i] = np.asarray(p - lr * self.direction(a, d, t))
            self.buffers[i].offer(item, priorities[i])


class DualAdamCM(AdamCM):
    """AdamCM with DualAdam's update on the aggregate: p ← p − lr · [(1−α)·a/d + α·a·d]."""

    def __init__(
        self, params: Sequence[Any], *args: Any, switch_rate: float = 8e-5, **options: Any
    ) -> None:
        super().__init__(params, *args, **options)
        self.switch_rate = switch_rate

    def direction(self, a: Array, d: Array, t: int) -> Array:
        """Return (1−α)·a/d + α·a·d with α = max(0, 1 − ξ·t)."""
        alpha = max(0.0, 1 - self.switch_rate * t)
        return (1 - alpha) * a / d + alpha * a * d


class SGDCM(Buffered):
    """SGD with critical momenta: m ← μ·m + (1−dampening)·g, p ← p − lr·(m + κ·mean(slots)).

    As in torch's SGD, weight decay is L2, the first m is g, and without momentum m is g (no
    dampening). m is stored.
    """

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        capacity: int = 5,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: str = "global",
        replacement: str = "priority",
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, maximize, capacity, priority_decay, kappa, scope, replacement)
        self.momentum = momentum
        self.dampening = dampening
        self.weight_decay = weight_decay
        self.m = self.zeros()

    def update(self, grads: list[Array | None]) -> None:
        # The priority is the gradient's before the L2 term.
        priorities = self.priorities(grads)
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            p = self.params[i]
            g = g + self.weight_decay * p
            if self.momentum == 0 or self.t[i] == 1:
                self.m[i] = g
            else:
                self.m[i] = self.momentum * self.m[i] + (1 - self.dampening) * g
            a = self.with_mean(i, self.m[i])
            self.params[i] = np.asarray(p - self.lr * a)
            self.buffers[i].offer(self.m[i], priorities[i])


class CriticalGradients(Buffered):
    """Critical gradients (arXiv 2106.10708): what a base method is given in place of g."""

    def __init__(
        self,
        params: Sequence[Any],
        lr: float,
        maximize: bool,
        capacity: int,
        priority_decay: float,
        kappa: float,
        scope: str,
        replacement: str,
        aggregation: str,
    ) -> None:
        super().__init__(params, lr, maximize, capacity, priority_decay, kappa, scope, replacement)
        if aggregation not in ("sum", "mean", "mid"):
            raise ValueError(f"unknown aggregation {aggregation!r}")
        self.aggregation = aggregation

    def aggregate(self, i: int, g: Array) -> Array:
        buffer = self.buffers[i]
        n = len(buffer.slots)
        if n == 0:
            return g
        if self.aggregation == "sum":
            return g + self.kappa * buffer.mean()
        if self.aggregation == "mean":
            return (g + self.kappa * buffer.sum()) / (n + 1)
        return 0.5 * (g + self.kappa * buffer.mean())


class SGDCG(CriticalGradients):
    """torch's SGD on the aggregate: L2 term and momentum are the aggregate's."""

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        aggregation: str = "sum",
        capacity: int = 10,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: str = "global",
        replacement: str = "priority",
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, lr, maximize, capacity, priority_decay, kappa, scope, replacement, aggregation
        )
        self.momentum = momentum
        self.dampening = dampening
        self.weight_decay = weight_decay
        self.m = self.zeros()

    def update(self, grads: list[Array | None]) -> None:
        priorities = self.priorities(grads)
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            p = self.params[i]
            a = self.aggregate(i, g) + self.weight_decay * p
            if self.momentum == 0 or self.t[i] == 1:
                self.m[i] = a
            else:
                self.m[i] = self.momentum * self.m[i] + (1 - self.dampening) * a
            self.params[i] = np.asarray(p - self.lr * self.m[i])
            self.buffers[i].offer(g, priorities[i])


class AdamCG(CriticalGradients):
    """torch's AdamW on the aggregate: decoupled weight decay, m and v of the aggregate."""

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        amsgrad: bool = False,
        aggregation: str = "mean",
        capacity: int = 10,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: str = "global",
        replacement: str = "priority",
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, lr, maximize, capacity, priority_decay, kappa, scope, replacement, aggregation
        )
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.amsgrad = amsgrad
        self.m = self.zeros()
        self.v = self.zeros()
        self.v_max = self.zeros()

    def update(self, grads: list[Array | None]) -> None:
        beta1, beta2 = self.betas
        priorities = self.priorities(grads)
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            t = self.t[i]
            p = self.params[i] * (1 - self.lr * self.weight_decay)
            a = self.aggregate(i, g)
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * a
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * a**2
            self.v_max[i] = np.maximum(self.v_max[i], self.v[i])
            v = self.v_max[i] if self.amsgrad else self.v[i]
            m_hat = self.m[i] / (1 - beta1**t)
            v_hat = v / (1 - beta2**t)
            self.params[i] = np.asarray(p - self.lr * m_hat / (np.sqrt(v_hat) + self.eps))
            self.buffers[i].offer(g, priorities[i])


class RMSpropCG(CriticalGradients):
    """torch's RMSprop on the aggregate: L2 weight decay, ε outside the root."""

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        aggregation: str = "mean",
        capacity: int = 10,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        scope: str = "global",
        replacement: str = "priority",
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params, lr, maximize, capacity, priority_decay, kappa, scope, replacement, aggregation
        )
        self.alpha = alpha
        self.eps = eps
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.centered = centered
        self.square_avg = self.zeros()
        self.grad_avg = self.zeros()
        self.momentum_buffer = self.zeros()

    def update(self, grads: list[Array | None]) -> None:
        priorities = self.priorities(grads)
        for i, g in enumerate(grads):
            if g is None:
                continue
            self.t[i] += 1
            p = self.params[i]
            a = self.aggregate(i, g) + self.weight_decay * p
            self.square_avg[i] = self.alpha * self.square_avg[i] + (1 - self.alpha) * a**2
            if self.centered:
                self.grad_avg[i] = self.alpha * self.grad_avg[i] + (1 - self.alpha) * a
                avg = np.sqrt(self.square_avg[i] - self.grad_avg[i] ** 2) + self.eps
            else:
                avg = np.sqrt(self.square_avg[i]) + self.eps
            if self.momentum > 0:
                self.momentum_buffer[i] = self.momentum * self.momentum_buffer[i] + a / avg
                step = self.momentum_buffer[i]
            else:
                step = a / avg
            self.params[i] = np.asarray(p - self.lr * step)
            self.buffers[i].offer(g, priorities[i])


REFERENCES: dict[str, type[Reference]] = {
    "DualAdam": DualAdam,
    "InvAdam": InvAdam,
    "MIAdam": MIAdam,
    "AdamCM": AdamCM,
    "DualAdamCM": DualAdamCM,
    "SGDCM": SGDCM,
    "SGDCG": SGDCG,
    "AdamCG": AdamCG,
    "RMSpropCG": RMSpropCG,
}


def reference(name: str, params: Sequence[Any], **options: Any) -> Any:
    """Return the reference of the optimizer ``name``; options as in its signature."""
    return REFERENCES[name](params, **options)


def sam_perturbation(
    params: Sequence[Any],
    grads: Sequence[Any],
    rho: float | None = None,
    adaptive: bool = False,
) -> list[Array]:
    """SAM's e = ρ·g/(‖g‖₂ + 1e-12); ASAM's e = ρ·p²g/(‖|p|·g‖₂ + 1e-12).

    The norm is over all parameters with a gradient; a parameter without one stays where it is.
    """
    if rho is None:
        rho = 0.5 if adaptive else 0.05
    ps = [np.array(p, dtype=np.float64) for p in params]
    gs = [None if g is None else np.array(g, dtype=np.float64) for g in grads]
    scaled: list[Array] = []
    for p, g in zip(ps, gs, strict=True):
        if g is not None:
            scaled.append(np.abs(p) * g if adaptive else g)
    denominator = norm(scaled) + 1e-12
    e: list[Array] = []
    for p, g in zip(ps, gs, strict=True):
        if g is None:
            e.append(np.zeros_like(p))
        elif adaptive:
            e.append(np.asarray(rho * p**2 * g / denominator))
        else:
            e.append(np.asarray(rho * g / denominator))
    return e
