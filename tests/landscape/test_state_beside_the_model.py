"""State that a loss and hidden modules keep is the same at each pass, and put back at the end."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steppe.landscape import barrier, hessian, line, sharpness, top_eigenvalues

torch.manual_seed(0)
X, Y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
DATA = [(X, Y)]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def norm(size: int = 3) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(size, affine=False).double()


class Centred(nn.Module):
    """Takes off a running mean of the targets, as self-distillation does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3, dtype=torch.float64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, F.softmax((targets - self.center) / 0.1, -1))
        with torch.no_grad():
            self.center.mul_(0.5).add_(targets.mean(0))
        return loss


class Drawing(nn.Module):
    """Compares with samples drawn by a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        order = torch.randperm(len(outputs), generator=self.generator)
        return F.mse_loss(outputs, targets) + 0.1 * (outputs * outputs[order]).sum(-1).mean()


class PlainCentre:
    """The same as an object of Python."""

    def __init__(self) -> None:
        self.center = torch.zeros(3, dtype=torch.float64)
        self.sums = np.zeros(3)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        shift = self.center + torch.from_numpy(self.sums)
        self.center.add_(targets.mean(0))
        self.sums = self.sums + 1.0
        return F.mse_loss(outputs.square(), (targets - shift).square())


def state(holder: Any) -> list[Any]:
    if isinstance(holder, nn.Module):
        own = [holder.training, *(tensor.clone() for tensor in holder.state_dict().values())]
        generator = getattr(holder, "generator", None)
        return own if generator is None else [*own, generator.get_state()]
    return [holder.center.clone(), torch.from_numpy(holder.sums.copy())]


def are_equal(one: list[Any], two: list[Any]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(one, two, strict=True)
    )


def in_closure(teacher: nn.Module) -> Callable[..., Tensor]:
    return lambda outputs, targets: F.mse_loss(outputs, teacher(targets))


def with_scale(outputs: Tensor, targets: Tensor, *, teachers: list[nn.Module]) -> Tensor:
    return F.mse_loss(outputs, teachers[0](targets))


def in_class(teacher: nn.Module) -> nn.Module:
    class Distilling(nn.Module):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return F.mse_loss(outputs, teacher(targets))

    return Distilling()


def of(make: Callable[[], Any], wrap: Callable[[Any], Any] = lambda each: each) -> Any:
    def both() -> tuple[Any, Any]:
        holder = make()
        return holder, wrap(holder)

    return both


class Normalised(nn.Module):
    """Autograd keeps its running statistics, which are put back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = norm()

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(self.norm(outputs), targets)


LOSSES = {
    "statistics": of(Normalised),
    "buffer": of(Centred),
    "generator": of(Drawing),
    "object": of(PlainCentre),
    "object in a closure": of(PlainCentre, lambda each: lambda o, t: each(o, t)),
    "teacher in a closure": of(norm, in_closure),
    "teacher in a partial": of(norm, lambda each: functools.partial(with_scale, teachers=[each])),
    "teacher in a class": of(norm, in_class),
    "bound method": of(Centred, lambda each: each.forward),
    "default": of(norm, lambda each: lambda o, t, teacher=each: F.mse_loss(o, teacher(t))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_same_function_at_every_pass(name: str) -> None:
    model = network()
    holder, loss_fn = LOSSES[name]()
    before = state(holder)
    H = hessian(model, loss_fn, DATA)
    vector = torch.ones(H.size, dtype=torch.float64)
    assert torch.equal(H.matvec(vector), H.matvec(vector))
    found = top_eigenvalues(H, 2)
    again = top_eigenvalues(hessian(model, loss_fn, DATA), 2)
    assert found.is_done
    assert (found.values == again.values).all()
    losses = line(model, loss_fn, DATA, points=3).losses
    assert (losses == line(model, loss_fn, DATA, points=3).losses).all()
    assert are_equal(state(holder), before)


def test_a_loss_is_that_of_its_own_state() -> None:
    model, loss_fn = network(), Centred()
    loss_fn.center.fill_(0.3)
    expected = copy.deepcopy(loss_fn)(model(X), Y).item()
    assert sharpness(model, loss_fn, DATA).loss == expected


class Hidden(nn.Module):
    """Keeps a teacher from being trained, in one of the ways that there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Linear(4, 3).double()
        self.teacher: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
        teacher = self.teacher
        del self.teacher
        if how == "list":
            self._teacher = [teacher]
        elif how == "hook":
            self.net.register_forward_hook(lambda module, args, out: out - teacher(args[0]))
        else:
            self._call = functools.partial(lambda module, x: module(x), teacher)
        self.how, self.found = how, lambda: teacher

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "hook":
            return self.net(x)
        return self.net(x) - (self._teacher[0] if self.how == "list" else self._call)(x)


@pytest.mark.parametrize("how", ["list", "hook", "partial"])
def test_hidden_modules_are_put_back(how: str) -> None:
    model = Hidden(how)
    before = state(model.found())
    top_eigenvalues(hessian(model, F.mse_loss, DATA), 1)
    sharpness(model, F.mse_loss, DATA)
    assert are_equal(state(model.found()), before)


def test_averaged_weights_that_follow_are_put_back() -> None:
    model = network()
    average = copy.deepcopy(model).requires_grad_(False)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        for own, param in zip(average.parameters(), model.parameters(), strict=True):
            own.lerp_(param.detach() + 1.0, 0.1)
        return F.mse_loss(outputs, average(X))

    before = state(average)
    found = [hessian(model, loss_fn, DATA).matvec(torch.ones(43).double()) for _ in range(2)]
    assert torch.equal(*found)
    assert are_equal(state(average), before)


class Resizing(nn.Module):
    """Makes a buffer, a tensor or an array longer in forward, in one of the ways that there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
        self.how, self.own = how, torch.zeros(0, 3, dtype=torch.float64)
        self.register_buffer("mask", torch.zeros(0, 3, dtype=torch.float64))
        self.history, self.extra = np.zeros(0), None

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(len(x), 3, dtype=torch.float64)
        if self.how == "data":
            self.mask.data = ones
        elif self.how == "resize":
            self.mask.resize_(len(x), 3).fill_(1.0)
        elif self.how == "set":
            self.mask.set_(ones)
        elif self.how == "assign":
            self.mask = ones
        elif self.how == "attribute":
            self.own.resize_(len(x), 3).fill_(1.0)
        elif self.how == "array":
            self.history.resize(len(self.history) + 1, refcheck=False)
        elif self.how == "register":
            self.register_buffer("late", ones)
        elif self.how == "parameter":
            self.body[0].weight.data = self.body[0].weight.data.clamp(-0.3, 0.3)
        return self.body(x)


WAYS = ["data", "resize", "set", "assign", "attribute", "array", "register", "parameter"]
INSTRUMENTS: dict[str, Callable[[nn.Module], Any]] = {
    "hessian": lambda model: top_eigenvalues(hessian(model, F.mse_loss, DATA), 1).values,
    "train": lambda model: top_eigenvalues(hessian(model, F.mse_loss, DATA, train=True), 1).values,
    "sharpness": lambda model: sharpness(model, F.mse_loss, DATA).value,
    "line": lambda model: line(model, F.mse_loss, DATA, points=3).losses,
    "barrier": lambda model: barrier(model, copy.deepcopy(model), F.mse_loss, DATA).losses,
}


@pytest.mark.parametrize("instrument", INSTRUMENTS)
@pytest.mark.parametrize("how", WAYS)
def test_what_forward_resizes_gets_its_size_back(how: str, instrument: str) -> None:
    model = Resizing(how).train()
    before = [(name, t.clone(), t.data_ptr()) for name, t in model.state_dict().items()]
    INSTRUMENTS[instrument](model)
    after = [(name, t, t.data_ptr()) for name, t in model.state_dict().items()]
    for (name, value, place), (now, tensor, address) in zip(before, after, strict=True):
        assert (now, address) == (name, place)
        assert torch.equal(tensor, value)
    assert (model.own.shape, model.history.shape, model.training) == ((0, 3), (0,), True)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_meta_tensors_that_are_not_used_do_no_harm(instrument: str, kind: str) -> None:
    def unfinished() -> nn.Module:
        model = network()
        if kind == "parameter":
            model[0].extra = nn.Linear(2, 2, device="meta").requires_grad_(False)
        else:
            model[0].register_buffer("extra", torch.zeros(3, device="meta"))
        return model

    assert np.all(INSTRUMENTS[instrument](unfinished()) == INSTRUMENTS[instrument](network()))
