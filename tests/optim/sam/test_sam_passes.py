"""Two passes in each of three ways, and the parameters put back between them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from helpers.sam_cases import (
    batch,
    bits,
    bits_of_state,
    closure_of,
    either_form,
    network,
    same,
    train,
    values,
)
from steppe import SAM, rules

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]


@either_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_restores_every_bit_in_place(dtype: torch.dtype, adaptive: bool) -> None:
    torch.manual_seed(0)
    shapes = [(5, 3), (), (2, 3, 4, 4)]
    params = [torch.randn(s, dtype=dtype) for s in shapes]
    params[2].data = params[2].data.to(memory_format=torch.channels_last)
    params.append(torch.randn(4, 3, dtype=dtype).t())
    params.append(torch.zeros(0, 2, dtype=dtype))
    for p in params:
        p.requires_grad_()
        p.grad = torch.randn_like(p)
    before = [(p.data_ptr(), p.stride(), bits(p)) for p in params]
    sam = SAM(torch.optim.SGD(params), rho=3.0, adaptive=adaptive)
    for _ in range(2):
        with sam.perturbed():
            moved = [bits(p) for p in params]
            assert all(m != b[2] for m, b in zip(moved[:4], before, strict=False))
            for p in params:
                p.grad = torch.randn_like(p)
        assert [(p.data_ptr(), p.stride(), bits(p)) for p in params] == before


@either_form
def test_half_precision_perturbation_is_computed_in_single_precision(adaptive: bool) -> None:
    # The norm of these gradients, 2.6e5, and their products with p are beyond half precision.
    p = nn.Parameter(torch.full((64,), 4.0, dtype=torch.float16))
    p.grad = torch.full_like(p, 32768.0)
    SAM(torch.optim.SGD([p]), rho=8.0, adaptive=adaptive).perturb()
    assert torch.equal(p.detach(), torch.full_like(p, 8.0 if adaptive else 5.0))


def test_restores_when_the_second_pass_raises() -> None:
    model = network(norm=nn.BatchNorm1d(4))
    sam = SAM(steppe.AdamCM(model.parameters()))
    train(model, sam)
    inputs, calls = batch(), []

    def closure() -> Tensor:
        calls.append(1)
        loss = closure_of(model, sam, inputs)()
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss

    expected = copy.deepcopy(model)
    expected(inputs)
    state = bits_of_state(sam)
    pointers = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        sam.step(closure)
    assert same(values(model), values(expected))
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert bits_of_state(sam) == state


def test_restores_when_the_perturbation_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    # Parameters of one group move together.
    groups = [{"params": [p], "rho": 1.0 + i} for i, p in enumerate(model.parameters())]
    sam = SAM(torch.optim.SGD(groups))
    closure_of(model, sam, batch())()
    before, calls, ascent = values(model), [], rules.sam_perturbed

    def fails_later(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        return ascent(*arguments)

    monkeypatch.setattr(rules, "sam_perturbed", fails_later)
    with pytest.raises(MemoryError):
        sam.perturb()
    assert len(calls) == 3
    assert same(values(model), before)


def test_after_a_second_pass_that_raises_the_next_step_has_two_again() -> None:
    """Also with a closure that clears gradients by itself, of which SAM is not told."""
    p, calls = nn.Parameter(torch.ones(3)), []
    sam = SAM(torch.optim.SGD([p]))

    def closure() -> Tensor:
        calls.append(1)
        p.grad = None
        loss = p.square().sum()
        loss.backward()
        if len(calls) == 2:
            raise MemoryError
        return loss

    with pytest.raises(MemoryError):
        sam.step(closure)
    sam.step(closure)
    assert len(calls) == 4
    assert sam.diagnostics()["ascents"] == 2


def short_gradient(p: Tensor) -> None:
    p.grad.data = torch.ones(1, 2)  # type: ignore[union-attr]


def freed_gradient(p: Tensor) -> None:
    p.grad.untyped_storage().resize_(0)  # type: ignore[union-attr]


def freed_parameter(p: Tensor) -> None:
    p.untyped_storage().resize_(0)


def expanded_parameter(p: Tensor) -> None:
    p.data = torch.ones(1).expand(p.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (short_gradient, r"shape \(3000, 2\), its gradient \(1, 2\)"),
        (freed_gradient, "the gradient of a parameter.* has no memory"),
        (freed_parameter, "a parameter.* has no memory"),
        (expanded_parameter, "a parameter.* has elements that share memory"),
    ],
)
def test_what_cannot_be_perturbed_is_refused_before_anything_moves(
    change: Any, message: str
) -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3000, 2))]
    sam = SAM(torch.optim.SGD(params))
    for p in params:
        p.grad = torch.ones_like(p)
    change(params[1])
    with pytest.raises(RuntimeError, match=message):
        sam.perturb()
    assert torch.equal(params[0].detach(), torch.ones(3))
    assert sam.diagnostics()["ascents"] == 0


def test_a_parameter_exchanged_between_the_passes_is_not_written_over() -> None:
    p = nn.Parameter(torch.ones(1, 3))
    sam = SAM(torch.optim.SGD([p]))
    p.grad = torch.ones_like(p)
    sam.perturb()
    p.data = torch.full((4, 3), 5.0)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"shape \(1, 3\) has \(4, 3\) in SAM's second pass"):
        sam.step()
    assert torch.equal(p.detach(), torch.full((4, 3), 5.0))


def test_what_others_exchange_between_the_passes_does_not_keep_the_rest_perturbed() -> None:
    params = [nn.Parameter(torch.full((3,), 1.0 + i)) for i in range(3)]
    sam = SAM(torch.optim.SGD(params), rho=1.0)
    for p in params:
        p.grad = torch.ones_like(p)
    sam.perturb()
    params[1].data = torch.full((4, 3), 5.0)
    with pytest.raises(RuntimeError, match=r"shape \(3,\) has \(4, 3\) in SAM's second pass"):
        sam.restore()
    assert [p.detach().flatten()[0] for p in params] == [1.0, 5.0, 3.0]
    params[1].data = torch.zeros(3)
    sam.restore()
    assert [p[0] for p in params] == [1.0, 2.0, 3.0]


def test_parameters_that_share_memory_move_one_after_the_other() -> None:
    """The second one begins where the first one has come to, and both come back."""
    memory = torch.arange(1.0, 7.0)
    params = [nn.Parameter(memory[:4]), nn.Parameter(memory[2:])]
    sam = SAM(torch.optim.SGD(params), rho=4.0, adaptive=True)
    for p in params:
        p.grad = torch.ones_like(p)
    before = memory.clone()
    length = torch.cat([before[:4], before[2:]]).norm()
    moved = before.clone()
    for part in (moved[:4], moved[2:]):
        part += 4.0 * part**2 / length
    with sam.perturbed():
        torch.testing.assert_close(memory, moved)
    assert same([memory], [before])


def test_a_step_takes_what_has_been_exchanged_since_the_last_one() -> None:
    """Number formats, shapes, layouts and memory: the copies of the last step do not fit."""
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]
    sam = SAM(torch.optim.SGD(params), rho=1.0)
    exchanged = [
        torch.full((3,), 1 / 3, dtype=torch.float64),
        torch.full((5,), 1 / 3),
        torch.full((2, 3), 1 / 3).t(),
        torch.full((), 1 / 3),
        torch.full((3,), 1 / 3, dtype=torch.bfloat16),
    ]
    for each in exchanged:
        params[0].grad = None
        params[0].data = each.clone()
        for p in params:
            p.grad = torch.ones_like(p)
        length = (params[0].numel() + 4) ** 0.5
        with sam.perturbed():
            torch.testing.assert_close(params[0].detach(), each + 1 / length)
            torch.testing.assert_close(params[1].detach(), torch.full((2, 2), 1 + 1 / length))
        assert same([params[0].detach(), params[1].detach()], [each, torch.ones(2, 2)])


def test_memory_that_inference_mode_has_made_is_not_used_again_outside() -> None:
    p = nn.Parameter(torch.ones(3))
    sam = SAM(torch.optim.SGD([p]), rho=1.0)
    for is_inference in (True, False):
        p.grad = torch.ones(3)
        with torch.inference_mode(is_inference):
            sam.perturb()
        assert p[0] > 1
        sam.restore()
        assert torch.equal(p.detach(), torch.ones(3))


def test_a_perturbation_left_behind_is_undone_by_the_next() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    sam = SAM(torch.optim.SGD([p]), rho=0.1)
    for slope in ([3.0, 4.0], [0.0, 1.0]):
        p.grad = torch.tensor(slope)
        sam.perturb()
    torch.testing.assert_close(p.detach(), torch.tensor([1.0, 2.1]))
    for _ in range(2):
        sam.restore()
        assert torch.equal(p.detach(), torch.tensor([1.0, 2.0]))


def test_a_parameter_twice_in_its_group_is_restored() -> None:
    p = nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        sam = SAM(torch.optim.SGD([p, p]), rho=1.0)
    p.grad = torch.ones(3)
    with sam.perturbed():
        assert p[0] > 1
    assert torch.equal(p.detach(), torch.ones(3))


@torch.no_grad()
def test_step_calls_the_closure_twice_and_returns_the_first_loss() -> None:
    model = network()
    sam = SAM(steppe.DualAdam(model.parameters()), rho=0.5)
    losses: list[float] = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        loss = closure_of(model, sam, batch())()
        losses.append(loss.item())
        return loss

    loss = sam.step(closure)
    assert len(losses) == 2
    assert loss.item() == losses[0] != losses[1]
    assert not torch.is_grad_enabled()


def test_two_calls_are_one_step_with_a_closure() -> None:
    one, two = network(norm=nn.BatchNorm1d(4)), network(norm=nn.BatchNorm1d(4))
    train(one, SAM(steppe.AdamCM(one.parameters()), rho=0.3))
    sam = SAM(steppe.AdamCM(two.parameters()), rho=0.3)
    for _ in range(4):
        closure_of(two, sam, batch())()
        sam.perturb()
        two(batch()).square().mean().backward()
        assert sam.step() is None
    assert same(values(one), values(two))


def test_accumulation_over_small_batches_is_the_whole_batch() -> None:
    one, two = network(torch.float64), network(torch.float64)
    train(one, SAM(steppe.AdamCM(one.parameters()), rho=0.3))
    sam = SAM(steppe.AdamCM(two.parameters()), rho=0.3)

    def accumulate() -> None:
        for part in batch(torch.float64).chunk(4):
            (two(part).square().mean() / 4).backward()

    for _ in range(4):
        sam.zero_grad()
        accumulate()
        with sam.perturbed():
            accumulate()
        sam.step()
    torch.testing.assert_close(values(one), values(two), rtol=1e-12, atol=0)


def scaled_step(
    model: nn.Module, sam: SAM, scaler: torch.amp.GradScaler, factors: tuple[float, float]
) -> None:
    """One step with scaled losses; a factor of infinity makes that pass overflow."""
    sam.zero_grad()
    scaler.scale(model(batch()).square().mean() * factors[0]).backward()
    with sam.perturbed():
        scaler.scale(model(batch()).square().mean() * factors[1]).backward()
    scaler.step(sam)
    scaler.update()


@either_form
def test_grad_scaler_changes_nothing(adaptive: bool) -> None:
    one, two = network(), network()
    train(one, SAM(steppe.AdamCM(one.parameters(), lr=0.1), rho=0.3, adaptive=adaptive))
    sam = SAM(steppe.AdamCM(two.parameters(), lr=0.1), rho=0.3, adaptive=adaptive)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(4):
        scaled_step(two, sam, scaler, (1.0, 1.0))
    torch.testing.assert_close(values(one), values(two), rtol=1e-4, atol=1e-6)


def test_clipping_under_a_grad_scaler_is_that_without() -> None:
    """As docs/sam.md says: unscaled after the second pass, before clipping."""
    one, two = network(), network()
    for model, scaler in (
        (one, torch.amp.GradScaler("cpu", enabled=False)),
        (two, torch.amp.GradScaler("cpu", init_scale=1024.0)),
    ):
        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        for _ in range(5):
            sam.zero_grad()
            scaler.scale(model(batch()).square().mean()).backward()
            with sam.perturbed():
                scaler.scale(model(batch()).square().mean()).backward()
            scaler.unscale_(sam)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
            assert norm > 1e-2
            scaler.step(sam)
            scaler.update()
    for ours, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("factors", [(1.0, torch.inf), (torch.inf, torch.inf)])
def test_a_step_that_grad_scaler_skips_changes_nothing(factors: tuple[float, float]) -> None:
    model = network()
    sam = SAM(steppe.AdamCM(model.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(model, sam, scaler, (1.0, 1.0))
    before, state = values(model), bits_of_state(sam)
    pointers = [p.data_ptr() for p in model.parameters()]
    scaled_step(model, sam, scaler, factors)
    assert same(values(model), before)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert bits_of_state(sam) == state
    assert scaler.get_scale() == 512.0
    scaled_step(model, sam, scaler, (1.0, 1.0))
    assert not same(values(model), before)


def test_overflow_in_the_first_pass_alone_leaves_the_base_step() -> None:
    one, two = network(), network()
    train(one, torch.optim.SGD(one.parameters(), lr=0.1), steps=1)
    sam = SAM(torch.optim.SGD(two.parameters(), lr=0.1))
    scaled_step(two, sam, torch.amp.GradScaler("cpu", init_scale=1024.0), (torch.inf, 1.0))
    assert same(values(one), values(two))


def test_one_autocast_region_around_both_passes() -> None:
    """Autocast keeps the weights that it has cast, which must not outlive the perturbation."""
    ends = []
    for outside in (False, True):
        model = network()
        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
        inside = torch.autocast("cpu", torch.bfloat16, enabled=not outside)
        run = closure_of(model, sam, batch())

        def closure(run: Any = run, inside: Any = inside) -> Tensor:
            with inside:
                return run()

        if outside:
            with torch.autocast("cpu", torch.bfloat16):
                sam.step(run)
                after = model(batch())
        else:
            sam.step(closure)
            with torch.autocast("cpu", torch.bfloat16):
                after = model(batch())
        ends.append([*values(model), after])
    assert same(*ends)
