"""State and arithmetic on the host: the steps are those of the optimizer itself."""

import copy
import gc
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

import steppe
from helpers.optimizer_configs import (
    CONFIGS,
    Config,
    assert_same_state,
    equal,
    parameters,
    set_gradients,
    train,
    values,
)
from steppe.optim import Offload

DEVICES = ["cpu", *(["accelerator"] if torch.accelerator.is_available() else [])]
AdamCM = partial(steppe.AdamCM, lr=0.01, capacity=2)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cpu":
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


def on(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return parameters(dtype, device=device)


def follow(optimizer: Optimizer, params: list[Tensor], steps: range) -> list[list[Tensor]]:
    """Take steps with gradients that are the same on every device; return all that they leave."""
    left = []
    for t in steps:
        # Of complex ones as of their real parts.
        hosts = [p.detach().cpu().real.clone().requires_grad_() for p in params]
        set_gradients(hosts, t)
        for p, host in zip(params, hosts, strict=True):
            p.grad = host.grad.to(p.device, p.dtype) * (1 + 1j if p.is_complex() else 1)
        optimizer.step()
        left.append([p.detach().cpu().clone() for p in params])
    return left


def same_state(one: Optimizer, other: Optimizer) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    return all(
        equal(list(ours["state"][key].values()), list(theirs["state"][key].values()))
        for key in ours["state"]
    )


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_steps_are_the_optimizers_own(config: Config, device: torch.device) -> None:
    params, plain = on(device), on(torch.device("cpu"))
    optimizer, alone = Offload(params, config), config(plain)
    for ours, theirs in zip(
        follow(optimizer, params, range(8)), follow(alone, plain, range(8)), strict=True
    ):
        assert equal(ours, theirs)
    assert same_state(optimizer, alone)
    assert optimizer.engine == alone.engine
    assert {x.device.type for s in optimizer.state.values() for x in s.values()} == {"cpu"}
    assert optimizer.diagnostics() == pytest.approx(alone.diagnostics(), nan_ok=True)
    found, expected = optimizer.preconditioner(), alone.preconditioner()
    assert equal([found[p].cpu() for p in params], [expected[p] for p in plain])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_other_number_formats(
    dtype: torch.dtype, state_dtype: torch.dtype | None, device: torch.device
) -> None:
    params, plain = on(device, dtype), on(torch.device("cpu"), dtype)
    optimizer = Offload(params, AdamCM, state_dtype=state_dtype)
    alone = AdamCM(plain, state_dtype=state_dtype)
    ours, theirs = follow(optimizer, params, range(5)), follow(alone, plain, range(5))
    assert all(map(equal, ours, theirs))


@pytest.mark.parametrize(
    "make", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9), torch.optim.Adafactor]
)
def test_torchs_optimizers(make: Callable[..., Optimizer], device: torch.device) -> None:
    params, plain = on(device), on(torch.device("cpu"))
    optimizer, alone = Offload(params, make, lr=0.01), make(plain, lr=0.01)
    ours, theirs = follow(optimizer, params, range(5)), follow(alone, plain, range(5))
    assert all(map(equal, ours, theirs))
    assert same_state(optimizer, alone)
    assert optimizer.engine == "torch.optim"
    assert optimizer.diagnostics() == {}


def test_nothing_of_the_optimizers_lies_with_the_model() -> None:
    params = parameters()
    optimizer = Offload(params, AdamCM)
    train(optimizer, params, range(3))
    gc.collect()
    inner = optimizer.base_optimizer
    mine = {p.data_ptr() for p in params} | {p.grad.data_ptr() for p in params}
    for copied in inner.param_groups[0]["params"]:
        for tensor in (copied, copied.grad, *inner.state[copied].values()):
            assert tensor.data_ptr() not in mine
    assert list(optimizer.state) == params


class Elsewhere(Tensor):
    """A tensor on a device that copies when it gets round to it, one after the other."""

    waiting: ClassVar[list[Callable[[], Any]]] = []
    device = property(lambda self: torch.device("cuda", 0))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.copy_ or not (kwargs or {}).get("non_blocking"):
            return super().__torch_function__(func, types, args, kwargs)
        target, source = (tensor.detach().as_subclass(Tensor) for tensor in args)
        cls.waiting.append(partial(target.copy_, source))
        return args[0]

    @classmethod
    def finish(cls, device: torch.device | None = None) -> None:
        """Do what is waiting."""
        for copying in cls.waiting:
            copying()
        cls.waiting.clear()


def test_steps_wait_for_what_the_device_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients and parameters are read once they are there, and the next step's come after."""
    monkeypatch.setattr(
        "steppe.optim.offload._host_tensor",
        lambda tensor, *_: torch.empty_like(tensor.as_subclass(Tensor)),
    )
    monkeypatch.setattr(torch.accelerator, "synchronize", Elsewhere.finish)
    params = [p.detach().as_subclass(Elsewhere).requires_grad_() for p in parameters()]
    plain = parameters()
    optimizer, alone = Offload(params, AdamCM), AdamCM(plain)
    for t in range(4):
        # Of a function that is linear in the parameters, so that the device need not look at them.
        for i, (p, q) in enumerate(zip(params, plain, strict=True)):
            q.grad = torch.full_like(q, (t + 1.0) / (i + 1))
            p.grad = q.grad.clone().as_subclass(Elsewhere)
        optimizer.step()
        alone.step()
        assert len(Elsewhere.waiting) == len(params)
    Elsewhere.finish()
    assert equal([p.detach().as_subclass(Tensor) for p in params], values(plain))


def test_what_else_changes_parameters_counts(device: torch.device) -> None:
    params, plain = on(device), on(torch.device("cpu"))
    optimizer, alone = Offload(params, AdamCM), AdamCM(plain)
    for model in (params, plain):
        follow(optimizer if model is params else alone, model, range(2))
        for p in model:
            p.data.clamp_(-0.5, 0.5)  # which no version counter sees
        with torch.no_grad():
            model[0].mul_(2)
            model[1] = model[1].set_(torch.ones_like(model[1]))
    ours = follow(optimizer, params, range(2, 4))
    assert all(map(equal, ours, follow(alone, plain, range(2, 4))))


@pytest.mark.parametrize(
    "formats", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_a_model_may_be_converted(formats: tuple[torch.dtype, torch.dtype]) -> None:
    before, after = formats
    ends = []
    for make in (AdamCM, partial(Offload, optimizer_class=AdamCM)):
        torch.manual_seed(0)
        model = nn.Linear(6, 4, dtype=before)
        params = list(model.parameters())
        optimizer = make(params)
        torch.manual_seed(1)  # of stochastic rounding
        train(optimizer, params, range(2))
        model.to(after)
        train(optimizer, params, range(2, 5))
        ends.append(values(params))
    assert equal(*ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gradients_may_have_a_format_of_their_own(dtype: torch.dtype, device: torch.device) -> None:
    ends = []
    for make in (AdamCM, partial(Offload, optimizer_class=AdamCM)):
        p = nn.Parameter(torch.ones(4, 3, device=device))
        p.grad_dtype = dtype
        optimizer = make([p])
        for t in range(1, 4):
            p.grad = torch.full((4, 3), float(t), dtype=dtype, device=device)
            optimizer.step()
        ends.append(p.detach().cpu())
    assert equal(*ends)


def test_a_complex_gradient_of_a_real_parameter_is_refused() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = Offload(params, AdamCM)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones(3)
        optimizer.step()
    params[1].grad.data = torch.ones(3, dtype=torch.complex64)
    before = values(params)
    with pytest.raises(RuntimeError, match="gradient with dtype 'c10::complex<float>'"):
        optimizer.step()
    assert equal(values(params), before)
    assert [optimizer.state[p]["step"].item() for p in params] == [2.0, 2.0]


@pytest.mark.parametrize("shape", [(1, 3), (8, 3), (4, 1), (3,), (2, 4, 3)], ids=str)
def test_a_parameter_of_another_shape_is_stepped_or_refused_as_without_offload(
    shape: tuple[int, ...],
) -> None:
    def resized(make: Any) -> tuple[nn.Parameter, Optimizer]:
        p = nn.Parameter(torch.ones(4, 3))
        optimizer = make([p], lr=0.1)
        for size in ((4, 3), shape):
            p.grad = None
            p.data = torch.ones(size)
            p.grad = torch.full(size, 2.0)
            if size == (4, 3) or "SGD" in str(make):
                optimizer.step()
        return p, optimizer

    # Without state there is nothing that does not fit.
    p, _ = resized(partial(Offload, optimizer_class=torch.optim.SGD))
    assert torch.equal(p.detach(), torch.full(shape, 0.8))
    p, optimizer = resized(partial(Offload, optimizer_class=AdamCM))
    with pytest.raises(RuntimeError, match=r"'exp_avg' has shape \(4, 3\)"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(shape))
    assert optimizer.state[p]["step"] == 1


def test_a_parameter_that_cannot_be_written_into_is_refused_before_the_step() -> None:
    params = parameters()
    optimizer = Offload(params, torch.optim.AdamW)
    train(optimizer, params, range(2))
    params[1].data = torch.ones(1, dtype=torch.float64).expand(params[1].shape)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(RuntimeError, match=r"a parameter, shape \(5,\), has elements that share"):
        optimizer.step()
    assert_same_state(optimizer.state_dict()["state"], before["state"])


def test_parameters_without_gradients_sit_the_step_out() -> None:
    params, plain = parameters(), parameters()
    optimizer, alone = Offload(params, AdamCM), AdamCM(plain)
    for t in range(4):
        for model, each in ((params, optimizer), (plain, alone)):
            set_gradients(model, t)
            model[t % 2].grad = None
            each.step()
        assert equal(values(params), values(plain))
    assert same_state(optimizer, alone)


def test_groups_schedulers_and_late_groups(device: torch.device) -> None:
    def made(params: list[Tensor], make: Callable[..., Optimizer]) -> list[list[Tensor]]:
        groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:3]}]
        optimizer = make(groups)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=10)
        left = []
        for t in range(6):
            if t == 3:
                optimizer.add_param_group(
                    {"params": params[3:], "capacity": 1, "max_lr": 0.1, "initial_lr": 0.1}
                    | {"min_lr": 0.01, "max_momentum": 0.9, "base_momentum": 0.8}
                )
                schedule.base_lrs.append(0.1)
            left += follow(optimizer, params, range(t, t + 1))
            schedule.step()
        assert optimizer.state_dict()["param_groups"][0]["lr"] == schedule.get_last_lr()[0]
        return left

    ours = made(on(device), lambda groups: Offload(groups, AdamCM))
    assert all(map(equal, ours, made(on(torch.device("cpu")), AdamCM)))


def test_a_group_that_is_refused_changes_nothing() -> None:
    params = parameters()
    optimizer = Offload(params[:2], steppe.AdamCM)
    with pytest.raises(ValueError, match="capacity=-1 is not valid"):
        optimizer.add_param_group({"params": params[2:], "capacity": -1})
    with pytest.raises(ValueError, match="capturable=True is not valid in Offload"):
        optimizer.add_param_group({"params": params[2:], "capturable": True})
    with pytest.raises(ValueError, match="some parameters appear in more than one"):
        optimizer.add_param_group({"params": params[1:]})
    assert len(optimizer.param_groups) == len(optimizer.base_optimizer.param_groups) == 1
    train(optimizer, params, range(2))


@pytest.mark.parametrize("name", ["capturable", "differentiable"])
def test_steps_without_the_host_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=True is not valid in Offload"):
        Offload(parameters(), steppe.DualAdam, **{name: True})


@pytest.mark.parametrize("wrong", [None, 3, torch.optim.SGD(parameters()), lambda params: 3])
def test_what_makes_no_optimizer_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"optimizer_class=(.|\n)* is not valid in Offload: expec"):
        Offload(parameters(), wrong)


def test_parameters_on_the_meta_device_are_refused() -> None:
    with pytest.raises(TypeError, match="Offload does not take parameters on the meta device"):
        Offload(nn.Linear(3, 2, device="meta").parameters(), steppe.AdamCM)


def test_optimizers_that_need_a_closure_are_refused() -> None:
    with pytest.raises(TypeError, match="LBFGS needs closure in every step, and Offload"):
        Offload(parameters(), torch.optim.LBFGS)
    with pytest.raises(ValueError, match="lr=-1 is not valid"):
        Offload(parameters(), steppe.AdamCM, lr=-1)


def test_checkpoints_pass_between_offloaded_and_not(tmp_path: Path, device: torch.device) -> None:
    params = on(device)
    optimizer = Offload(params, AdamCM)
    follow(optimizer, params, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "saved")
    starts = [p.detach().cpu().clone() for p in params]
    expected = follow(optimizer, params, range(3, 6))

    for make in (AdamCM, partial(Offload, optimizer_class=AdamCM)):
        again = [start.clone().requires_grad_() for start in starts]
        resumed = make(again, lr=0.5)
        resumed.load_state_dict(torch.load(tmp_path / "saved", weights_only=True))
        assert resumed.param_groups[0]["lr"] == 0.01
        assert all(map(equal, follow(resumed, again, range(3, 6)), expected))

    other = Offload(on(device), AdamCM, capacity=3)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="checkpoint does not fit this AdamCM"):
        other.load_state_dict({**optimizer.state_dict(), "param_groups": []})
    assert other.state_dict() == before


def test_copies_and_pickles_go_on_alone() -> None:
    params = parameters()
    optimizer = Offload(params, AdamCM)
    train(optimizer, params, range(3))
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        clones = again.param_groups[0]["params"]
        train(again, clones, range(3, 6))
        assert not equal(values(clones), values(params))
        again.register_state_dict_pre_hook(lambda optimizer: None)
    train(optimizer, params, range(3, 6))
    assert equal(values(clones), values(params))
    assert same_state(optimizer, again)


def network(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(device)


def loss_of(model: nn.Module) -> Tensor:
    inputs = torch.linspace(-1, 1, 24, device=next(model.parameters()).device).reshape(8, 3)
    return (model(inputs) - inputs.prod(1, True)).square().mean()


def closure_of(model: nn.Module, optimizer: Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return loss

    return closure


def scaled(model: nn.Module, optimizer: Optimizer) -> None:
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, init_scale=8.0)
    for t in range(5):
        optimizer.zero_grad()
        scaler.scale(loss_of(model) * (torch.inf if t == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()


def closures(model: nn.Module, optimizer: Optimizer) -> None:
    for _ in range(5):
        assert optimizer.step(closure_of(model, optimizer)) > 0


@pytest.mark.parametrize("run", [scaled, closures])
@pytest.mark.parametrize("wrap", [lambda base: base, partial(steppe.SAM, required=False)])
def test_closures_clipping_scalers_and_sam(
    run: Callable[..., None], wrap: Callable[[Optimizer], Optimizer]
) -> None:
    model, plain = network(torch.device("cpu")), network(torch.device("cpu"))
    run(model, wrap(Offload(model.named_parameters(), steppe.AdamCM, lr=0.01)))
    run(plain, wrap(steppe.AdamCM(plain.named_parameters(), lr=0.01)))
    assert equal(values(list(model.parameters())), values(list(plain.parameters())))
    assert not equal(values(list(model.parameters())), values(list(network("cpu").parameters())))


def test_torchs_distributed_checkpoints() -> None:
    model = network(torch.device("cpu"))
    optimizer = Offload(model.parameters(), AdamCM)
    closures(model, optimizer)
    saved = get_optimizer_state_dict(model, optimizer)
    assert saved["state"]["0.weight"]["slot_0"].shape == (5, 3)
    other = Offload(model.parameters(), AdamCM)
    set_optimizer_state_dict(model, other, saved)
    assert same_state(optimizer, other)


def test_sparse_gradients_reach_the_optimizer() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    alone = copy.deepcopy(table)
    for layer, make in (
        (table, partial(Offload, optimizer_class=torch.optim.SparseAdam)),
        (alone, torch.optim.SparseAdam),
    ):
        optimizer = make(list(layer.parameters()), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            layer(torch.tensor([1, 3])).square().sum().backward()
            optimizer.step()
    assert torch.equal(table.weight, alone.weight)
