"""What is not as it was is looked at anew: pruned, turned and moved tensors, and other gradients.

The truth is a float64 step by hand, or that of the eager engine, which goes by torch's own views.
"""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.testing._internal.two_tensor import TwoTensor

import steppe
from helpers.optimizer_configs import Config, parameters, set_gradients
from steppe._engines.base import tensor_facts
from steppe._engines.cpu import tensor_reader

CONFIGS = [
    Config("DualAdam"),
    Config("DualAdam", {"scale_free": True}),
    Config("DualAdam", {"state_dtype": torch.bfloat16}),
    Config("AdamCM", {"capacity": 2}),
    Config("SGDCM", {"capacity": 2, "scope": "tensor", "replacement": "fifo"}),
    Config("SGDCG", {"capacity": 0}),
]
ENGINES = pytest.mark.parametrize("fused", [True, False], ids=["fused", "eager"])


def cut(whole: Tensor) -> Tensor:
    return whole[:5]


def columns(whole: Tensor) -> Tensor:
    return whole[:, :4]


def turned(whole: Tensor) -> Tensor:
    return whole.t()


def every_other(whole: Tensor) -> Tensor:
    return whole[::2]


def stepped(config: Config, change: object, *, fused: bool | None) -> tuple[Tensor, Tensor]:
    """Change a parameter and its state between two steps; return it, and what was cut off."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(12, 8, generator=generator)
    p = Parameter(whole)
    optimizer = config([p], lr=0.1, fused=fused)
    p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    before, state = p.detach().clone(), optimizer.state[p]
    p.grad = None
    p.data = change(p.data)  # type: ignore[operator]
    for name, value in state.items():
        if value.shape == (12, 8):
            state[name] = change(value)  # type: ignore[operator]
    for _ in range(3):
        p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    mine = torch.zeros(12, 8, dtype=torch.bool)
    change(mine).fill_(True)  # type: ignore[operator]
    assert torch.equal(whole[~mine], before[~mine]), "what is no longer the parameter's was written"
    return p.detach(), before


@pytest.mark.parametrize("change", [cut, columns, turned, every_other])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_parameter_may_be_cut_with_its_state(config: Config, change: object) -> None:
    ours, _ = stepped(config, change, fused=None)
    theirs, _ = stepped(config, change, fused=False)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("when", ["made", "moved", "state"])
def test_tensors_over_the_same_memory_are_stepped_one_after_the_other(when: str) -> None:
    # Two threads that write the same number at once would lose one of the steps.
    memory = torch.zeros(70_000)
    params = [Parameter(memory[:50_000]), Parameter(memory[20_000:])]
    if when != "made":
        params[1].data = params[1].data.clone()
    optimizer = steppe.SGDCM(params, lr=0.5, capacity=0, momentum=0.5)

    def step() -> None:
        for number, param in enumerate(params, start=1):
            param.grad = torch.full_like(param, float(number))
        optimizer.step()

    step()
    if when == "moved":
        params[1].data = memory[20_000:]
    if when == "state":
        state = [optimizer.state[param] for param in params]
        state[1]["momentum_buffer"].data = state[0]["momentum_buffer"]
    step()
    assert optimizer.engine == "eager"
    if when == "state":
        # Of one buffer: 0.5 + 1, then half of that + 2; the first step has been ½·g.
        assert params[0].unique().tolist() == [-0.5 - 0.5 * (0.5 + 1)]
        assert params[1].unique().tolist() == [-1 - 0.5 * (0.5 * 1.5 + 2)]
        return
    # The second step is 1.5 of the first, with momentum.
    first, second = 0.5 * (1 + 1.5), 0.5 * 2 * (1 + 1.5)
    both = -first - (second if when == "made" else 0.5 * 2 * 1.5)
    assert memory[:20_000].unique().tolist() == [-first]
    if when == "made":
        assert memory[20_000:50_000].unique().tolist() == [both]
        assert memory[50_000:].unique().tolist() == [-second]


@pytest.mark.parametrize("fused", [None, False], ids=["fused", "eager"])
@pytest.mark.parametrize("name", ["slot_keys", "slot_births"])
def test_what_lies_side_by_side_is_looked_at_where_it_is_now(name: str, fused: bool | None) -> None:
    def run(change: object) -> tuple[steppe.AdamCM, list[Parameter]]:
        generator = torch.Generator().manual_seed(0)
        params = [Parameter(torch.ones(4)), Parameter(torch.ones(3))]
        optimizer = steppe.AdamCM(params, lr=0.1, capacity=2, fused=fused)
        for number in range(8):
            if number == 4:
                change(optimizer.state[params[1]])  # type: ignore[operator]
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        return optimizer, params

    def overwrite(state: dict[str, Tensor]) -> None:
        state[name].fill_(1e9)

    def give_data(state: dict[str, Tensor]) -> None:
        state[name].data = torch.full((2,), 1e9, dtype=torch.float64)

    (one, ours), (other, theirs) = run(overwrite), run(give_data)
    assert all(map(torch.equal, ours, theirs))
    for mine, yours in zip(one.state.values(), other.state.values(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=0, atol=0)

    def shorten(state: dict[str, Tensor]) -> None:
        state[name].data = torch.zeros(1, dtype=torch.float64)

    with pytest.raises(RuntimeError, match=rf"{name}|capacity"):
        run(shorten)


@ENGINES
def test_state_that_was_not_cut_is_refused_by_name(fused: bool) -> None:
    first, p = Parameter(torch.ones(3)), Parameter(torch.ones(6, 4))
    optimizer = steppe.AdamCM([{"params": [first]}, {"params": [p]}], fused=fused)
    for each in (first, p):
        each.grad = torch.ones_like(each)
    optimizer.step()
    p.grad = None
    p.data = p.data[:2]
    p.grad = torch.ones_like(p)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(
        RuntimeError, match=r"parameter 0 of group 1, shape \(2, 4\): 'exp_avg' has"
    ):
        optimizer.step()
    after = optimizer.state_dict()
    assert [after["state"][i]["step"].item() for i in range(2)] == [1.0, 1.0]
    for i in range(2):
        for name, value in before["state"][i].items():
            assert torch.equal(after["state"][i][name], value), name
    assert first.tolist() == pytest.approx([first[0].item()] * 3)
    del optimizer.state[p]  # as the message says
    optimizer.step()
    assert optimizer.state[p]["step"].item() == 1.0


@pytest.mark.parametrize("name", ["DualAdam", "AdamCM"])
def test_scales_of_8_bit_state_may_lie_apart(name: str) -> None:
    """The kernel reads them side by side: it must not take every other one of a larger tensor."""

    def stepped(fused: bool | None, apart: bool) -> list[Tensor]:
        params = parameters(torch.float32, [(5000,)])
        optimizer = Config(name, {"state_dtype": "int8"})(params, fused=False)
        set_gradients(params, 0)
        optimizer.step()
        optimizer.param_groups[0]["fused"] = fused
        state = optimizer.state[params[0]]
        for key in [key for key in state if key.endswith("_scale") and apart]:
            larger = torch.full((2 * state[key].numel(),), 9.0)
            larger[::2] = state[key]
            state[key] = larger[::2]
        for t in range(1, 3):
            set_gradients(params, t)
            optimizer.step()
        return [*params, *state.values()]

    truth = stepped(fused=False, apart=False)
    for fused in (None, False):
        for ours, theirs in zip(stepped(fused, apart=True), truth, strict=True):
            assert torch.equal(ours, theirs)


def _replace_data(tensor: Tensor, data: Tensor) -> None:
    tensor.data = data


def _free(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def _shorten(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(8)


@ENGINES
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, s: _replace_data(p.grad, torch.ones(2)), r"its gradient \(2,\)"),
        (lambda p, s: _replace_data(p.grad, torch.ones(7, 1)), r"its gradient \(7, 1\)"),
        (
            lambda p, s: _replace_data(p.grad, torch.ones(7, dtype=torch.complex64)),
            r"gradient of parameter 0 .* is torch\.complex64 and the parameter torch\.float32",
        ),
        (lambda p, s: _free(p.grad), "gradient of parameter 0 .* no memory"),
        (lambda p, s: _shorten(p.grad), "gradient of parameter 0 .* behind its storage"),
        (lambda p, s: _free(p), "parameter 0 .* no memory"),
        (lambda p, s: _shorten(p), "parameter 0 .* behind its storage"),
        (lambda p, s: _replace_data(s["exp_avg"], torch.ones(3)), r"'exp_avg' has shape \(3,\)"),
        (lambda p, s: s.update(exp_avg=torch.ones(9)), r"'exp_avg' has shape \(9,\)"),
        (lambda p, s: _free(s["exp_avg_sq"]), "'exp_avg_sq' of parameter 0 .* no memory"),
        (lambda p, s: _shorten(s["exp_avg_sq"]), "'exp_avg_sq' of parameter 0 .* behind"),
        (
            lambda p, s: _replace_data(s["exp_avg"], s["exp_avg"].data.view(torch.int32)),
            "'exp_avg' is torch.int32",
        ),
        (lambda p, s: _replace_data(p, torch._neg_view(torch.ones(7))), "lazy negative"),
        (lambda p, s: _replace_data(p, torch.ones(1).expand(7)), "parameter 0 .* share memory"),
        (
            lambda p, s: _replace_data(s["exp_avg_sq"], torch.ones(1).expand(7)),
            "'exp_avg_sq' of parameter 0 .* share memory",
        ),
        (
            lambda p, s: s.update(exp_avg=torch.ones(1).expand(7)),
            "'exp_avg' of parameter 0 .* share memory",
        ),
        (
            lambda p, s: s.update(exp_avg=_of_inference_mode(7)),
            r"'exp_avg' of parameter 0 .* made under torch\.inference_mode",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(
    change: object, message: str, fused: bool
) -> None:
    other, p = Parameter(torch.ones(4)), Parameter(torch.ones(7))
    optimizer = steppe.DualAdam([p, other], lr=0.1, fused=fused)
    for each in (p, other):
        each.grad = torch.ones_like(each)
    optimizer.step()
    change(p, optimizer.state[p])  # type: ignore[operator]
    before = other.detach().clone()
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert torch.equal(other, before)
    assert [optimizer.state[each]["step"].item() for each in (p, other)] == [1.0, 1.0]


@ENGINES
@pytest.mark.parametrize("name", ["DualAdam", "AdamCM", "SGDCG"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_gradients_of_formats_that_nothing_computes_in(
    dtype: torch.dtype, name: str, fused: bool
) -> None:
    """Whatever put them there, they are numbers: a step is that along them in the usual format."""
    params, plain = ([Parameter(torch.ones(4)), Parameter(torch.ones(7))] for _ in range(2))
    for parts, formats in ((params, (torch.float32, dtype)), (plain, 2 * (torch.float32,))):
        optimizer = getattr(steppe, name)(parts, fused=fused)
        for _ in range(2):
            for p, format in zip(parts, formats, strict=True):
                p.grad = torch.ones_like(p)
                p.grad.data = p.grad.data.to(format)
            optimizer.step()
    for p, q in zip(params, plain, strict=True):
        assert torch.equal(p, q)


def _of_inference_mode(*shape: int) -> Tensor:
    with torch.inference_mode():
        return torch.ones(shape)


@pytest.mark.parametrize("fused", [None, False], ids=["fused", "eager"])
@pytest.mark.parametrize("name", ["DualAdam", "AdamCM"])
def test_windows_over_a_signal_are_refused_as_parameters(name: str, fused: bool | None) -> None:
    """No stride is 0 there: torch changes them in place, each element as often as it is met."""
    p, other = Parameter(torch.ones(6).as_strided((3, 4), (1, 1))), Parameter(torch.ones(4))
    optimizer = Config(name)([other, p], fused=fused)
    p.grad, other.grad = torch.ones(3, 4), torch.ones(4)
    with pytest.raises(RuntimeError, match=r"parameter 1 .* shape \(3, 4\), .* share memory"):
        optimizer.step()
    assert other.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2, 3), (3, 2)), ((3, 2), (2, 3)), ((4, 3), (7, 2)), ((2, 1, 3), (1, 0, 2))],
)
def test_elements_that_only_interleave_are_stepped(shape: tuple, strides: tuple) -> None:
    apart = Parameter(torch.arange(40.0).as_strided(shape, strides))
    plain = Parameter(apart.detach().clone(memory_format=torch.contiguous_format))
    for p in (apart, plain):
        optimizer = steppe.DualAdam([p], lr=0.1, fused=False)
        p.grad = torch.linspace(-1.0, 1.0, p.numel()).view(p.shape)
        optimizer.step()
    assert torch.equal(apart, plain)


@ENGINES
def test_a_parameter_of_inference_mode_is_refused_outside(fused: bool) -> None:
    other = Parameter(torch.ones(4))
    other.grad = torch.ones(4)
    with torch.inference_mode():
        p = Parameter(torch.ones(5))
        p.grad = torch.ones(5)
    optimizer = steppe.DualAdam([other, p], lr=0.1, fused=fused)
    with pytest.raises(RuntimeError, match=r"parameter 1 .* made under torch\.inference_mode"):
        optimizer.step()
    assert other.tolist() == [1.0] * 4
    assert not optimizer.state
    with torch.inference_mode():
        optimizer.step()
    assert p.tolist() == pytest.approx([0.9] * 5)


@ENGINES
def test_steps_in_inference_mode_and_outside(fused: bool) -> None:
    """State that was made outside may be changed in both; what was made inside, only there."""
    params, alone = parameters(torch.float32), parameters(torch.float32)
    optimizer, truth = Config("AdamCM")(params, fused=fused), Config("AdamCM")(alone, fused=fused)
    for t in range(4):
        set_gradients(params, t)
        set_gradients(alone, t)
        truth.step()
        with torch.inference_mode(t % 2 == 1):
            optimizer.step()
    assert all(map(torch.equal, params, alone))

    inside = steppe.AdamCM(params, fused=fused)
    with torch.inference_mode():
        inside.step()
    before = [p.detach().clone() for p in params]
    with pytest.raises(
        RuntimeError, match=r"state 'exp_avg' of .* made under torch\.inference_mode"
    ):
        inside.step()
    assert all(map(torch.equal, params, before))
    assert {state["step"].item() for state in inside.state.values()} == {1.0}
    for state in inside.state.values():
        state.update({name: value.clone() for name, value in state.items()})  # as it says
    inside.step()
    assert {state["step"].item() for state in inside.state.values()} == {2.0}


@ENGINES
def test_data_that_inference_mode_has_made_may_be_stepped(fused: bool) -> None:
    p = Parameter(torch.ones(5))
    p.data = _of_inference_mode(5)
    p.grad = torch.ones(5)
    steppe.DualAdam([p], lr=0.1, fused=fused).step()
    assert p.tolist() == pytest.approx([0.9] * 5)


@ENGINES
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (2, 3)])
def test_lazy_negatives_that_autograd_makes_step_the_right_way(
    shape: tuple[int, ...], fused: bool
) -> None:
    a, b = (Parameter(torch.ones(shape)) for _ in range(2))
    (torch.complex(a, b).conj() * torch.tensor(2 + 3j)).real.sum().backward()
    assert b.grad is not None
    steppe.SGDCG([a, b], lr=0.1, capacity=0, fused=fused).step()
    torch.testing.assert_close(b.detach(), torch.full(shape, 1.0 - 0.1 * 3.0))


@ENGINES
def test_a_lazy_conjugate_is_refused(fused: bool) -> None:
    p = Parameter(torch.full((3,), 1 + 2j).conj())
    p.grad = torch.ones(3, dtype=torch.complex64)
    if fused:
        fused = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"lazy conjugate.*resolve_conj"):
        steppe.DualAdam([p], fused=fused).step()
    with pytest.raises(RuntimeError, match=r"lazy conjugate.*resolve_conj"):
        steppe.SAM(torch.optim.SGD([p], lr=0.1)).perturb()


@ENGINES
@pytest.mark.parametrize(
    "make",
    [
        lambda: TwoTensor(torch.ones(10), torch.ones(10)),
        lambda: TwoTensor(torch.ones(10), torch.ones(10)).neg(),
    ],
)
def test_a_wrapper_is_never_looked_into(make: object, fused: bool) -> None:
    p = Parameter(torch.zeros(10))
    optimizer = steppe.DualAdam([p], fused=fused)
    p.grad = make()  # type: ignore[operator]
    with pytest.raises(RuntimeError, match=r"gradient of parameter 0 of group 0.*TwoTensor"):
        optimizer.step()
    assert p.tolist() == [0.0] * 10


class Tagged(Tensor):
    """A subclass of functions alone: its memory is its own."""


@ENGINES
def test_a_subclass_with_memory_of_its_own_is_stepped_with(fused: bool) -> None:
    p, plain = Parameter(torch.zeros(6)), Parameter(torch.zeros(6))
    p.grad = torch.arange(6.0).as_subclass(Tagged)
    plain.grad = torch.arange(6.0)
    steppe.DualAdam([p], fused=fused).step()
    steppe.DualAdam([plain], fused=fused).step()
    assert torch.equal(p, plain)


@ENGINES
@pytest.mark.parametrize("columns", [4, 3], ids=["dense", "with-gaps"])
@pytest.mark.parametrize("where", ["itself", "shifted", "another", "moment"])
def test_gradients_in_memory_that_the_step_writes_are_read_before_it(
    where: str, columns: int, fused: bool
) -> None:
    def stepped(is_copied: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        memory = [torch.rand(200, generator=generator) for _ in range(2)]
        params = [Parameter(each[40:].view(40, 4)[:, :columns]) for each in memory]
        optimizer = steppe.DualAdam(
            params, lr=0.1, weight_decay=0.1, fused=None if fused else False
        )
        set_gradients(params, 0)
        optimizer.step()
        gradient = {
            "itself": params[0].detach(),
            "shifted": memory[0][39:199].view(40, 4)[:, :columns],
            "another": memory[0][36:196].view(40, 4)[:, :columns],
            "moment": optimizer.state[params[0]]["exp_avg_sq"],
        }[where]
        set_gradients(params, 1)
        owner = params[where == "another"]
        owner.grad = gradient.clone() if is_copied else gradient
        optimizer.step()
        return [p.detach().clone() for p in params]

    for aliased, copied in zip(stepped(False), stepped(True), strict=True):
        torch.testing.assert_close(aliased, copied, rtol=0, atol=0)


@ENGINES
def test_a_backward_pass_through_stepped_weights_is_refused(fused: bool) -> None:
    p = Parameter(torch.ones(3))
    optimizer = steppe.DualAdam([p], fused=fused)
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@ENGINES
@pytest.mark.parametrize("name", ["DualAdam", "AdamCM"])
def test_swapped_tensors_are_stepped_where_they_are_now(name: str, fused: bool) -> None:
    p, other = Parameter(torch.ones(4)), Parameter(torch.full((4,), 5.0))
    optimizer = getattr(steppe, name)([p], lr=0.1, fused=fused)
    p.grad = torch.ones(4)
    optimizer.step()
    p.grad = None
    torch.utils.swap_tensors(p, other)
    p.grad = torch.ones(4)
    optimizer.step()
    assert (p < 5.0).all()
    assert (other > 0.85).all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_whichever_parameters_have_gradients(config: Config) -> None:
    shapes = [(3, 5), (40,), (), (2, 2), (17,)]
    left, right = (parameters(torch.float32, shapes) for _ in range(2))
    ours = config(left, fused=True)
    theirs = config(right, fused=False)
    rng = np.random.default_rng(1)
    for t in range(25):
        has = rng.random(len(shapes)) < 0.6
        for optimizer, params in ((ours, left), (theirs, right)):
            set_gradients(params, t)
            for p, keeps in zip(params, has, strict=True):
                p.grad = p.grad if keeps else None
            optimizer.step()
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert ours.state[a]["step"] == theirs.state[b]["step"]
        for name in ("slot_keys", "slot_births", "replacements", "exp_avg_sq_mean"):
            if name in theirs.state[b]:
                torch.testing.assert_close(ours.state[a][name], theirs.state[b][name])


def test_gradients_in_one_of_several_groups() -> None:
    left, right = (parameters(torch.float64, [(3,), (4,)]) for _ in range(2))
    for params, fused in ((left, True), (right, False)):
        groups = [{"params": [p], "lr": 0.1 * (1 + i)} for i, p in enumerate(params)]
        optimizer = steppe.AdamCM(groups, fused=fused)
        for t in range(6):
            set_gradients(params, t)
            if t:
                params[t % 2].grad = None
            optimizer.step()
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


@ENGINES
def test_a_count_that_several_parameters_were_given_is_counted_for_each(fused: bool) -> None:
    params = [Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = steppe.DualAdam(params, fused=fused)
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    count = torch.tensor(7.0)
    for p in params:
        optimizer.state[p]["step"] = count
    for absent in (None, torch.ones(3)):
        params[0].grad = absent
        optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [8.0, 9.0, 9.0]


@ENGINES
def test_step_counts_are_exact_beyond_2_to_the_24(fused: bool) -> None:
    p = Parameter(torch.zeros(3))
    optimizer = steppe.AdamCM([p], replacement="fifo", capacity=3, fused=fused)
    p.grad = torch.ones(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    # As a checkpoint of 0.1 has it: in float32.
    saved["state"][0]["step"] = torch.tensor(2.0**24)
    optimizer.load_state_dict(saved)
    for g in range(2, 8):
        p.grad = torch.full((3,), float(g))
        optimizer.step()
    assert optimizer.state[p]["step"].item() == 2**24 + 6
    births = optimizer.state[p]["slot_births"]
    assert sorted(births.tolist()) == [2**24 + 4, 2**24 + 5, 2**24 + 6]


@pytest.mark.parametrize("count", [2**24 + 1, float(2**24 + 1), np.int64(2**24 + 1)], ids=type)
def test_a_long_count_that_is_a_number_loads_exactly(count: object) -> None:
    p = Parameter(torch.zeros(3))
    optimizer = steppe.DualAdam([p])
    p.grad = torch.ones(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = count
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.state[p]["step"].item() == 2**24 + 2


def test_optimizers_in_several_threads_do_not_disturb_each_other() -> None:
    def run(results: list[Tensor], i: int) -> None:
        params = parameters(torch.float32, [(50, 3), (7,)])
        optimizer = steppe.AdamCM(params)
        for t in range(30):
            set_gradients(params, t)
            optimizer.step()
            optimizer.state_dict()
        results[i] = torch.cat([p.detach().flatten() for p in params])

    results = [torch.zeros(0)] * 4
    threads = [threading.Thread(target=run, args=(results, i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_the_compiled_pass_reads_what_python_reads() -> None:
    base = torch.arange(60.0)
    tensors = [
        base,
        base[5:29].view(2, 3, 4).permute(2, 0, 1),
        base[::7],
        torch.zeros(()),
        torch.zeros(0, 4),
        torch.zeros(1, 1, 5).transpose(0, 2),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.float16),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(4, dtype=torch.uint8),
        torch.ones(2, 2).to_sparse(),
        torch.zeros(2, 1, 2, 1, 2),
    ]
    assert tensor_reader._reader() is not None
    for dims in (3, 5):
        np.testing.assert_array_equal(
            tensor_reader.read(tensors, dims), tensor_facts.read(tensors, dims)
        )


def test_without_torchs_c_functions_python_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_reader, "_reader", lambda: None)
    ours, _ = stepped(CONFIGS[0], turned, fused=None)
    theirs, _ = stepped(CONFIGS[0], turned, fused=False)
    torch.testing.assert_close(ours, theirs)
