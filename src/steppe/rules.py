"""The arithmetic of every optimizer, each written once, for every engine.

Functions here are pure and do elementwise arithmetic only. Their arguments may be Python floats,
NumPy arrays, torch tensors, one element inside a Numba loop or one block inside a Triton kernel.
The only outside name is ``xp``, which :func:`steppe._engines.bind` replaces by the module that the
engine computes with. There are three kinds of functions.

* **Rules** update one element. They take the parameter ``p``, the gradient ``g``, the method's
  state (``m``, ``v``, …), for methods with a buffer the sum ``total`` of its slots, and then
  scalars. They return the new ``p``, the new state and, with a buffer, the item to remember.
  They may use ``xp.sqrt``, ``xp.abs`` and ``xp.maximum``. They do no arithmetic among scalars: in
  float32, 1 − β2 would be wrong by 5e-5, so β2 and 1 − β2 are two scalars.
* **Scalar functions** turn a group's options and a parameter's own step count ``t``, which starts
  at 1, into the scalars of its rule, in the rule's order. They may use ``xp.clip``.
* **Buffer decisions** choose the slot to replace, from the keys of one buffer's C slots. They may
  use ``xp.argmin`` and ``xp.where``.

Names and the symbols of the papers:

======================= ==========================================================================
``p``, ``g``            parameter and gradient
``m``, ``v``            moving averages of g, or of what the step goes along, and of its square
``peak``                running maximum of v (AMSGrad)
``keep1``, ``take1``    β1 and 1 − β1; with 2 at the end for β2, without a digit for RMSprop's α
``correction1``         1/(1 − β1ᵗ), by which m̂ = m·correction1; ``correction2`` likewise for v̂
``d``                   √v̂ + ε
``decay``               1 − lr·weight_decay
``direct``, ``inverse`` 1 − α and α of DualAdam, where α = max(0, 1 − ξ·t) and ξ = ``switch_rate``
``integral_1``, …       MIAdam's integrals m̄⁽¹⁾, …: decaying sums of m, of the first sum, …
``rate``                κ of MIAdam: what an integral keeps of itself in a step
``early``, ``late``     weights of MIAdam's last integral and of m: lrⁿ⁻¹ and 0, then 0 and 1
``total``               sum of a buffer's slots
``own``, ``share``      weights of g and of ``total`` in the aggregate; κ is in ``share``
``a``                   the aggregate, which the step goes along
``gain``                1 − dampening of SGD's momentum
======================= ==========================================================================

Sources: DualAdam is Shi et al. 2026 (arXiv 2603.07122), MIAdam Jin et al. 2025 (arXiv 2412.12473),
critical momenta Malviya et al. 2024 (arXiv 2307.09638), critical gradients McRae et al. 2022 (arXiv
2106.10708), SAM Foret et al. 2021 (arXiv 2010.01412), ASAM Kwon et al. 2021 (arXiv 2102.11600).
"""

xp = None  # replaced by bind


# Shared pieces


def ema(average, value, keep, take):
    """Exponential moving average: β·average + (1−β)·value, with β and 1−β given."""
    return average * keep + value * take


def denominator(v, correction2, eps):
    """d = √v̂ + ε."""
    return xp.sqrt(v * correction2) + eps


def inverse_part(direction, d, inverse):
    """α·m̂·d: the part of DualAdam's update that multiplies by the root of the second moment."""
    return direction * d * inverse


def two_way(direction, d, direct, inverse):
    """DualAdam's update: (1−α)·m̂/d + α·m̂·d, with 1−α and α given."""
    return direction / d * direct + inverse_part(direction, d, inverse)


def switch_weights(t, switch_rate):
    """1 − α and α, the weights of the two parts, where α = max(0, 1 − ξ·t)."""
    direct = xp.clip(switch_rate * t, None, 1.0)
    direct = direct + (1.0 - direct) * (1.0 - is_before_switch(t, switch_rate))
    return direct, 1.0 - direct


def is_before_switch(t, switch_rate):
    """1 in steps before 1/ξ, 0 from it on; ξ·t within 5e-10 of 1 is 1: 49·(1/49) is less."""
    return xp.clip((1.0 - switch_rate * t) * 1e9 - 0.5, 0.0, 1.0)


# Adam, InvAdam (its inverse), and DualAdam (both at once)


def adam(p, g, m, v, lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2):
    """AdamW: p·(1 − lr·wd) − lr·m̂/d (Loshchilov & Hutter 2019, arXiv 1711.05101)."""
    m = ema(m, g, keep1, take1)
    v = ema(v, g * g, keep2, take2)
    p = p * decay - m * correction1 / denominator(v, correction2, eps) * lr
    return p, m, v


def adam_amsgrad(
    p, g, m, v, peak,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2,
):  # fmt: skip
    """AdamW with max(v) over the steps so far in d (AMSGrad, Reddi et al., arXiv 1904.09237).

    As in torch the maximum is of the uncorrected v, and the bias correction comes afterwards.
    """
    m = ema(m, g, keep1, take1)
    v = ema(v, g * g, keep2, take2)
    peak = xp.maximum(peak, v)
    p = p * decay - m * correction1 / denominator(peak, correction2, eps) * lr
    return p, m, v, peak


def inv_adam(p, g, m, v, lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2):
    """InvAdam: p·(1 − lr·wd) − lr·m̂·d."""
    m = ema(m, g, keep1, take1)
    v = ema(v, g * g, keep2, take2)
    p = p * decay - m * correction1 * denominator(v, correction2, eps) * lr
    return p, m, v


def dual_adam(
    p, g, m, v,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, direct, inverse,
):  # fmt: skip
    """DualAdam: p·(1 − lr·wd) − lr·[(1−α)·m̂/d + α·m̂·d]."""
    m = ema(m, g, keep1, take1)
    v = ema(v, g * g, keep2, take2)
    d = denominator(v, correction2, eps)
    p = p * decay - two_way(m * correction1, d, direct, inverse) * lr
    return p, m, v


def dual_adam_scale_free(
    p, g, m, v,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, direct, inverse, rms,
):  # fmt: skip
    """DualAdam on q = d/r, r = rms + ε: p·(1 − lr·wd) − lr·(m̂/r)·[(1−α)/q + α·q].

    ``rms`` is the root of the tensor's mean of v̂, so that q is about 1 whatever the loss's scale.
    Computed as m̂·[(1−α)/d + α/r²·d], with one division by an element in the place of three.
    """
    m = ema(m, g, keep1, take1)
    v = ema(v, g * g, keep2, take2)
    r = rms + eps
    d = denominator(v, correction2, eps)
    p = p * decay - two_way(m * correction1, d, direct, inverse / r / r) * lr
    return p, m, v


def mean_square(mean, square, keep2, take2, correction2):
    """Means of v and of v̂ over a tensor, from the mean of g² over it, ``square``.

    The mean of a moving average is the moving average of the means: v itself need not be read.
    """
    mean = ema(mean, square, keep2, take2)
    return mean, mean * correction2


def adam_scalars(t, lr, betas, eps, weight_decay):
    """Scalars of Adam and InvAdam."""
    beta1, beta2 = betas
    return (
        lr,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        eps,
        1.0 - lr * weight_decay,
        1.0 / (1.0 - beta1**t),
        1.0 / (1.0 - beta2**t),
    )


def dual_adam_scalars(t, lr, betas, eps, weight_decay, switch_rate):
    """Adam's scalars, 1 − α and α."""
    return *adam_scalars(t, lr, betas, eps, weight_decay), *switch_weights(t, switch_rate)


# MIAdam: until its switch, Adam along the momentum integrated n times, with lrⁿ in the place of lr.
# After it the integrals go on, with weight 0. There is a rule for each n.


def decaying_sum(integral, value, rate):
    """Σ over the steps so far of κ^age·value: κ·integral + value."""
    return integral * rate + value


def integral_direction(m, integral, early, late):
    """What MIAdam steps along: lrⁿ⁻¹·m̄⁽ⁿ⁾ before its switch, m after it."""
    return integral * early + m * late


def integral_move(p, m, integral, v, lr, eps, decay, correction1, correction2, early, late):
    """Adam's update along that direction; after the switch it is Adam's bit for bit."""
    direction = integral_direction(m, integral, early, late)
    return p * decay - direction * correction1 / denominator(v, correction2, eps) * lr


def mi_adam_1(
    p, g, m, v, integral_1,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, early, late, rate,
):  # fmt: skip
    """MIAdam with one integral: m̄⁽¹⁾ ← κ·m̄⁽¹⁾ + m."""
    m = ema(m, g, keep1, take1)
    v = ema(v, g * g, keep2, take2)
    integral_1 = decaying_sum(integral_1, m, rate)
    p = integral_move(p, m, integral_1, v, lr, eps, decay, correction1, correction2, early, late)
    return p, m, v, integral_1


def mi_adam_2(
    p, g, m, v, integral_1, integral_2,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, early, late, rate,
):  # fmt: skip
    """MIAdam with two integrals: m̄⁽²⁾ ← κ·m̄⁽²⁾ + m̄⁽¹⁾."""
    m = ema(m, g, keep1, take1)
    v = ema(v, g * g, keep2, take2)
    integral_1 = decaying_sum(integral_1, m, rate)
    integral_2 = decaying_sum(integral_2, integral_1, rate)
    p = integral_move(p, m, integral_2, v, lr, eps, decay, correction1, correction2, early, late)
    return p, m, v, integral_1, integral_2


def mi_adam_3(
    p, g, m, v, integral_1, integral_2, integral_3,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, early, late, rate,
):  # fmt: skip
    """MIAdam with three integrals: m̄⁽³⁾ ← κ·m̄⁽³⁾ + m̄⁽²⁾."""
    m = ema(m, g, keep1, take1)
    v = ema(v, g * g, keep2, take2)
    integral_1 = decaying_sum(integral_1, m, rate)
    integral_2 = decaying_sum(integral_2, integral_1, rate)
    integral_3 = decaying_sum(integral_3, integral_2, rate)
    p = integral_move(p, m, integral_3, v, lr, eps, decay, correction1, correction2, early, late)
    return p, m, v, integral_1, integral_2, integral_3


def integral_weights(t, lr, switch_rate, integration_order):
    """Weights of m̄⁽ⁿ⁾ and m: lrⁿ⁻¹ and 0 in steps before 1/ξ, 0 and 1 from it on."""
    is_early = is_before_switch(t, switch_rate)
    return is_early * lr ** (integration_order - 1.0), 1.0 - is_early


def mi_adam_scalars(
    t, lr, betas, eps, weight_decay, switch_rate, integration_order, integration_rate
):
    """Adam's scalars, the weights of integral and momentum, and κ."""
    return (
        *adam_scalars(t, lr, betas, eps, weight_decay),
        *integral_weights(t, lr, switch_rate, integration_order),
        integration_rate,
    )


# Critical momenta: remember the momentum, step along it plus κ times the mean of those remembered.
# AdamCM is DualAdamCM at α = 0.


def corrected_momentum(m, correction1):
    """m̂, which AdamCM remembers."""
    return m * correction1


def kept_momentum(m):
    """SGDCM remembers m as it is."""
    return m


def critical_move(p, a, v, lr, eps, decay, correction2, direct, inverse):
    """DualAdam's update along the aggregate a: p·decay − lr·[(1−α)·a/d + α·a·d]."""
    return p * decay - two_way(a, denominator(v, correction2, eps), direct, inverse) * lr


def adam_cm(
    p, g, m, v, total,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, direct, inverse, share,
):  # fmt: skip
    """AdamCM and DualAdamCM: a = m̂ + κ·mean(slots), v of a², update along a; remembers m̂."""
    m = ema(m, g, keep1, take1)
    item = corrected_momentum(m, correction1)
    a = item + total * share
    v = ema(v, a * a, keep2, take2)
    return critical_move(p, a, v, lr, eps, decay, correction2, direct, inverse), m, v, item


def adam_cm_amsgrad(
    p, g, m, v, peak, total,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, direct, inverse, share,
):  # fmt: skip
    """AdamCM and DualAdamCM with max(v) over the steps so far in d."""
    m = ema(m, g, keep1, take1)
    item = corrected_momentum(m, correction1)
    a = item + total * share
    v = ema(v, a * a, keep2, take2)
    peak = xp.maximum(peak, v)
    return critical_move(p, a, peak, lr, eps, decay, correction2, direct, inverse), m, v, peak, item


# The CM paper's released code: m stays uncorrected in the aggregate and in the buffer, and its
# correction multiplies the whole step. At t = 1 (``first`` = 1, elsewhere 0) the raw gradient is
# remembered; m, hence a and v, stay zero, and only weight decay moves the parameter. The step is
# then 0 over √1 rather than over √0, which would be NaN at ε = 0 and has no derivative.


def adam_cm_authors(
    p, g, m, v, total,
    lr, keep1, take1, keep2, take2, eps, decay, correction2, direct, inverse, first, share,
):  # fmt: skip
    """AdamCM and DualAdamCM as in the released code: a = m + κ·mean(slots); remembers m."""
    m = ema(m, g, keep1, take1)
    a = m + total * share
    v = ema(v, a * a, keep2, take2)
    p = critical_move(p, a, v + first, lr, eps, decay, correction2, direct, inverse)
    return p, m, v, m + g * first


def adam_cm_authors_amsgrad(
    p, g, m, v, peak, total,
    lr, keep1, take1, keep2, take2, eps, decay, correction2, direct, inverse, first, share,
):  # fmt: skip
    """The released AdamCM and DualAdamCM with max(v) over the steps so far in d."""
    m = ema(m, g, keep1, take1)
    a = m + total * share
    v = ema(v, a * a, keep2, take2)
    peak = xp.maximum(peak, v)
    p = critical_move(p, a, peak + first, lr, eps, decay, correction2, direct, inverse)
    return p, m, v, peak, m + g * first


def adam_cm_scalars(t, lr, betas, eps, weight_decay):
    """Adam's scalars, 1 − α = 1 and α = 0."""
    return *adam_scalars(t, lr, betas, eps, weight_decay), 1.0, 0.0


def authors_scalars(t, lr, betas, eps, weight_decay):
    """Scalars of the released AdamCM: its lr is lr/(1 − β1ᵗ), as m stays uncorrected."""
    return dual_authors_scalars(t, lr, betas, eps, weight_decay, switch_rate=1.0)


def dual_authors_scalars(t, lr, betas, eps, weight_decay, switch_rate):
    """Scalars of DualAdamCM in the released arithmetic; m stays 0 at t = 1."""
    first = 1.0 - xp.clip(t - 1.0, 0.0, 1.0)
    _, _, take1, keep2, take2, eps, decay, correction1, correction2 = adam_scalars(
        t, lr, betas, eps, weight_decay
    )
    take1 = take1 * (1.0 - first)
    direct, inverse = switch_weights(t, switch_rate)
    return (
        lr * correction1,
        1.0 - take1,
        take1,
        keep2,
        take2,
        eps,
        decay,
        correction2,
        direct,
        inverse,
        first,
    )


def sgd_cm(p, g, m, total, lr, momentum, gain, weight_decay, share):
    """SGDCM: p − lr·a along a = m + κ·mean(slots), with torch's m of SGD; remembers m."""
    m = m * momentum + (g + p * weight_decay) * gain
    a = m + total * share
    return p - a * lr, m, kept_momentum(m)


def sgd_scalars(t, lr, momentum, dampening, weight_decay):
    """Scalars of SGD with momentum; as in torch the first gradient is not dampened."""
    return lr, momentum, 1.0 - dampening * xp.clip(t - 1.0, 0.0, 1.0), weight_decay


def undamped_sgd_scalars(t, lr, momentum, weight_decay):
    """Scalars of SGD without dampening; torch ignores dampening where momentum is 0."""
    return lr, momentum, 1.0, weight_decay


def critical_mean(filled, kappa):
    """``share`` in m + κ·mean(slots): κ/n of n filled slots; their sum is 0 while n is 0."""
    return (kappa / xp.clip(filled, 1.0, None),)


# Critical gradients: torch's SGD, AdamW and RMSprop along an aggregate of g and the remembered
# gradients, own·g + share·total, in the place of the gradient. All of them remember g.


def sgd_cg(p, g, total, lr, weight_decay, own, share):
    """SGDCG without momentum: p − lr·(own·g + share·Σ slots + wd·p)."""
    return p - (g * own + total * share + p * weight_decay) * lr, g


def sgd_cg_momentum(p, g, m, total, lr, momentum, gain, weight_decay, own, share):
    """SGDCG with momentum: m ← momentum·m + gain·(own·g + share·Σ slots + wd·p), p − lr·m."""
    m = m * momentum + (g * own + total * share + p * weight_decay) * gain
    return p - m * lr, m, g


def plain_sgd_scalars(t, lr, weight_decay):
    """Scalars of SGD without momentum."""
    return lr, weight_decay


def adam_cg(
    p, g, m, v, total,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, own, share,
):  # fmt: skip
    """AdamCG: AdamW with a = own·g + share·Σ slots as gradient."""
    a = g * own + total * share
    p, m, v = adam(p, a, m, v, lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2)
    return p, m, v, g


def adam_cg_amsgrad(
    p, g, m, v, peak, total,
    lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2, own, share,
):  # fmt: skip
    """AdamCG with max(v) over the steps so far in d."""
    a = g * own + total * share
    p, m, v, peak = adam_amsgrad(
        p, a, m, v, peak, lr, keep1, take1, keep2, take2, eps, decay, correction1, correction2
    )
    return p, m, v, peak, g


def centered_denominator(v, mean, eps):
    """√(v − mean²) + ε; |·| because rounding may leave a difference of equals below zero."""
    return xp.sqrt(xp.abs(v - mean * mean)) + eps


def rmsprop_cg(p, g, v, total, lr, keep, take, eps, weight_decay, own, share):
    """RMSpropCG: v ← α·v + (1−α)·a², p − lr·a/(√v + ε), with a of the aggregate and wd·p."""
    a = g * own + total * share + p * weight_decay
    v = ema(v, a * a, keep, take)
    return p - a / (xp.sqrt(v) + eps) * lr, v, g


def rmsprop_cg_centered(p, g, v, mean, total, lr, keep, take, eps, weight_decay, own, share):
    """Centered RMSpropCG: p − lr·a/(√(v − mean²) + ε), with the moving average of a as mean."""
    a = g * own + total * share + p * weight_decay
    v = ema(v, a * a, keep, take)
    mean = ema(mean, a, keep, take)
    return p - a / centered_denominator(v, mean, eps) * lr, v, mean, g


def rmsprop_cg_momentum(
    p, g, v, buffer, total,
    lr, keep, take, eps, weight_decay, momentum, own, share,
):  # fmt: skip
    """RMSpropCG with momentum: buffer ← momentum·buffer + a/(√v + ε), p − lr·buffer."""
    a = g * own + total * share + p * weight_decay
    v = ema(v, a * a, keep, take)
    buffer = buffer * momentum + a / (xp.sqrt(v) + eps)
    return p - buffer * lr, v, buffer, g


def rmsprop_cg_centered_momentum(
    p, g, v, mean, buffer, total,
    lr, keep, take, eps, weight_decay, momentum, own, share,
):  # fmt: skip
    """Centered RMSpropCG with momentum: the same with √(v − mean²) + ε."""
    a = g * own + total * share + p * weight_decay
    v = ema(v, a * a, keep, take)
    mean = ema(mean, a, keep, take)
    buffer = buffer * momentum + a / centered_denominator(v, mean, eps)
    return p - buffer * lr, v, mean, buffer, g


def rmsprop_scalars(t, lr, alpha, eps, weight_decay):
    """Scalars of RMSprop."""
    return lr, alpha, 1.0 - alpha, eps, weight_decay


def rmsprop_momentum_scalars(t, lr, alpha, eps, weight_decay, momentum):
    """Scalars of RMSprop with momentum."""
    return lr, alpha, 1.0 - alpha, eps, weight_decay, momentum


def aggregate_sum(filled, kappa):
    """``own`` and ``share`` of the aggregate g + κ·mean(slots), with n = ``filled`` slots."""
    return 1.0, kappa / xp.clip(filled, 1.0, None)


def aggregate_mean(filled, kappa):
    """``own`` and ``share`` of the aggregate (g + κ·Σ slots)/(n + 1)."""
    own = 1.0 / (filled + 1.0)
    return own, kappa * own


def aggregate_mid(filled, kappa):
    """``own`` and ``share`` of the aggregate ½(g + κ·mean(slots)); g while no slot is filled."""
    own = 1.0 - 0.5 * xp.clip(filled, 0.0, 1.0)
    return own, kappa / xp.clip(filled, 1.0, None) * own


# The buffer: C slots, each with a key and the step ``births`` in which it was filled. Both are −∞
# where a slot is empty, so that empty slots are filled first; ``index`` is 0…C−1. Each function
# returns the mask of the slot to store in, if any, and the new keys and births. ``priority`` is the
# gradient's norm; one that is not finite stores nothing.


def remember_priority(keys, births, index, priority, t, decay):
    """Replace the slot of the smallest key if the priority exceeds it; then decay all keys."""
    store = (index == xp.argmin(keys, 0)) & (priority > keys) & (priority < float("inf"))
    return store, xp.where(store, priority, keys) * decay, xp.where(store, t, births)


def remember_fifo(keys, births, index, priority, t, decay):
    """Replace the oldest slot."""
    store = (index == xp.argmin(births, 0)) & (priority < float("inf"))
    return store, xp.where(store, priority, keys) * decay, xp.where(store, t, births)


def swap(total, slot, item):
    """Sum of the slots after ``item`` has replaced ``slot``: total + (item − slot)."""
    return total + (item - slot)


# Sharpness-aware minimisation: where the gradient is taken that the step goes along. e goes along
# a gradient or momentum ``g``, in a metric: ``s`` is 1, |p| (adaptive), or P^(1/2) with P what the
# base optimizer multiplies momenta by (preconditioned). ``scale`` is ρ over the norm of s·g.


def sam_perturbed(p, direction, scale):
    """The point p + e, e = ρ·s²g/‖s·g‖; at random e = ρ·std(p)·ξ, or ρ·p·ξ."""
    return p + direction * scale


def metric_length(s, g):
    """s·g, whose norm over all parameters is the denominator of e."""
    return s * g


def metric_direction(s, g):
    """s²·g, along which e goes."""
    return s * s * g
