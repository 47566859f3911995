"""SAM around every optimizer: what it computes, and from which gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import steppe
from helpers.float64_reference import reference, sam_perturbation
from helpers.sam_cases import (
    STARTS,
    Make,
    batch,
    closure_of,
    either_form,
    every_base,
    gradient,
    leaves,
    network,
    same,
    train,
    values,
    wavy_closure,
)
from steppe import SAM
from steppe._engines.base.cache_chunks import PIECE


@either_form
@pytest.mark.parametrize("rho", [None, 0.3])
@pytest.mark.parametrize("name", ["AdamCM", "AdamCG", "SGDCM", "RMSpropCG"])
def test_equals_the_float64_reference(name: str, rho: float | None, adaptive: bool) -> None:
    params = leaves()
    sam = SAM(getattr(steppe, name)(params, lr=1e-2), rho=rho, adaptive=adaptive)
    ref = reference(name, STARTS, lr=1e-2)
    for _ in range(20):
        sam.step(wavy_closure(params, sam))
        e = sam_perturbation(ref.params, [gradient(p) for p in ref.params], rho, adaptive)
        ref.step([gradient(p + x) for p, x in zip(ref.params, e, strict=True)])
        for p, expected in zip(params, ref.params, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-11, atol=1e-15)


@either_form
def test_perturbation_in_single_precision(adaptive: bool) -> None:
    params = leaves(dtype=torch.float32)
    sam = SAM(torch.optim.SGD(params), rho=0.3, adaptive=adaptive)
    wavy_closure(params, sam)()
    starts = [p.detach().double().numpy() for p in params]
    expected = sam_perturbation(starts, [p.grad.numpy() for p in params], 0.3, adaptive)  # type: ignore[union-attr]
    sam.perturb()
    for p, start, e in zip(params, starts, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), start + e, rtol=3e-7)
        assert p.grad is None


@either_form
def test_large_tensors_move_whole_whatever_their_layout(adaptive: bool) -> None:
    """They are worked on in pieces, where they and their gradients lie alike."""
    torch.manual_seed(0)
    shape = (PIECE // 512 + 3, 1024)
    params = [nn.Parameter(torch.randn(shape).contiguous()), nn.Parameter(torch.randn(shape).t())]
    for p, grad in zip(params, (torch.randn(shape), torch.randn(shape[::-1])), strict=True):
        p.grad = grad
    starts = [p.detach().double().numpy() for p in params]
    expected = sam_perturbation(starts, [p.grad.numpy() for p in params], 300.0, adaptive)  # type: ignore[union-attr]
    before = [p.detach().clone() for p in params]
    sam = SAM(torch.optim.SGD(params), rho=300.0, adaptive=adaptive)
    sam.perturb()
    for p, start, e in zip(params, starts, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), start + e, rtol=1e-6, atol=1e-6)
        assert np.abs(e).max() > 0.5
    sam.restore()
    assert same([p.detach() for p in params], before)


def test_groups_have_their_own_radius_and_form() -> None:
    starts = [*STARTS, np.array([0.5])]
    params = leaves(starts)
    groups: list[dict[str, Any]] = [
        {"params": params[:1], "rho": 0.2},
        {"params": params[1:2], "adaptive": True},
    ]
    sam = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.4)
    sam.add_param_group({"params": params[2:], "rho": 0.0})
    sam.step(wavy_closure(params, sam))

    g = [gradient(p) for p in starts]
    lengths = [g[0], np.abs(starts[1]) * g[1], g[2]]
    norm = np.sqrt(sum(np.sum(x**2) for x in lengths)) + 1e-12
    e = [0.2 * g[0] / norm, 0.4 * starts[1] ** 2 * g[1] / norm, np.zeros(1)]
    for p, start, x in zip(params, starts, e, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), start - 0.1 * gradient(start + x), 1e-12)


def test_complex_parameters_are_pairs_of_real_ones() -> None:
    start = np.array([1 + 2j, -0.5 + 0.3j])
    slope = np.array([0.2 - 1j, 2 + 0j])
    for adaptive in (False, True):
        p = nn.Parameter(torch.tensor(start))
        # The gradient of this loss is the slope, as a conjugate that is not yet computed.
        (p.conj() * torch.tensor(slope)).sum().real.backward()
        assert p.grad is not None
        assert p.grad.is_conj()
        SAM(torch.optim.SGD([p]), rho=0.3, adaptive=adaptive).perturb()
        pairs = [x.view(np.float64) for x in (start, slope)]
        (e,) = sam_perturbation(pairs[:1], pairs[1:], 0.3, adaptive)
        np.testing.assert_allclose(p.detach().numpy().view(np.float64), pairs[0] + e, 1e-12)


@either_form
@every_base
def test_maximising_is_minimising_minus_the_objective(make: Make, adaptive: bool) -> None:
    ends = []
    for sign in (1, -1):
        params = leaves(dtype=torch.float32)
        base = make([{"params": params, "maximize": sign < 0}])
        sam = SAM(base, rho=0.3, adaptive=adaptive)
        run = wavy_closure(params, sam, sign)
        for _ in range(3):
            sam.step(run)
        ends.append(params)
    assert same(*ends)


def test_groups_that_minimise_and_maximise() -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    sam = SAM(torch.optim.SGD([{"params": params[:1]}, {"params": params[1:], "maximize": True}]))
    for p, slope in zip(params, (3.0, 4.0), strict=True):
        p.grad = torch.full((1,), slope)
    sam.perturb()
    torch.testing.assert_close([p.item() for p in params], [1 + 0.03, 1 - 0.04])


@every_base
def test_zero_radius_is_the_base_optimizer(make: Make) -> None:
    plain, wrapped = network(), network()
    train(plain, make(plain.parameters()))
    train(wrapped, SAM(make(wrapped.parameters()), rho=0.0))
    assert same(values(plain), values(wrapped))


@every_base
def test_wraps_every_optimizer(make: Make) -> None:
    plain, wrapped = network(), network()
    train(plain, make(plain.parameters()), steps=20)
    sam = SAM(make(wrapped.parameters()), rho=0.05)
    before = closure_of(wrapped, sam, batch())().item()
    train(wrapped, sam, steps=20)
    after = closure_of(wrapped, sam, batch())().item()
    assert after < before
    assert not same(values(plain), values(wrapped))


def test_parameters_without_gradients_stay_and_do_not_count() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    params[1].requires_grad_(False)
    sam = SAM(steppe.AdamCM(params), rho=1.0)
    params[0].grad = torch.tensor([3.0, 4.0])
    with sam.perturbed():
        torch.testing.assert_close(params[0].detach(), torch.tensor([1.6, 1.8]))
        assert all(torch.equal(p.detach(), torch.ones(2)) for p in params[1:])
        params[0].grad = torch.ones(2)
    sam.step()
    assert all(torch.equal(p.detach(), torch.ones(2)) for p in params[1:])
    assert list(sam.state) == params[:1]


def test_no_gradients_at_all() -> None:
    model = network()
    before = values(model)
    sam = SAM(steppe.AdamCM(model.parameters()), required=False)
    with sam.perturbed():
        assert same(values(model), before)
    sam.step()
    assert same(values(model), before)


@either_form
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_gradients_that_give_no_direction(value: float, adaptive: bool) -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    sam = SAM(torch.optim.SGD(params, lr=1.0), adaptive=adaptive)
    params[0].grad = torch.tensor([value, 0.0])
    params[1].grad = torch.zeros(2) if value == 0 else torch.ones(2)
    with sam.perturbed():
        assert all(torch.equal(p.detach(), torch.ones(2)) for p in params)


def test_nan_reaches_the_base() -> None:
    p, plain = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    sam = SAM(torch.optim.AdamW([p]))

    def closure() -> None:
        p.grad = torch.tensor([torch.nan, 1.0])

    sam.step(closure)
    plain.grad = p.grad
    torch.optim.AdamW([plain]).step()
    assert p[0].isnan()
    assert same([p], [plain])


def test_sparse_gradients_are_refused_before_anything_has_changed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 3, sparse=True))
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
    before = values(model)

    def closure() -> None:
        sam.zero_grad()
        model[0](model[1](torch.tensor([1, 2]))).square().sum().backward()

    with pytest.raises(RuntimeError, match=r"sparse.*shape \(4, 3\).*sparse=False"):
        sam.step(closure)
    assert same(values(model), before)
    assert all(p.grad is not None for p in model.parameters())
