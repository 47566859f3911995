"""Planning, choosing an engine, and the interface that a fused engine fills."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from helpers.optimizer_configs import Config, equal, parameters, train
from steppe import _engines
from steppe._engines import dispatch
from steppe._engines.base.norms import Norms, joint_norm, square_sum
from steppe._engines.eager import engine as eager


def test_groups_with_equal_rules_share_a_batch() -> None:
    params = parameters()
    optimizer = Config("DualAdam")([{"params": [p], "lr": 0.1**i} for i, p in enumerate(params)])
    train(optimizer, params, range(1))
    assert [len(batch.rows) for batch in optimizer._planner.planned().batches] == [4]


def test_other_rules_and_demands_make_other_batches() -> None:
    params, more = parameters(), parameters(shapes=[(2,)])
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "amsgrad": True},
        {"params": params[2:3], "capturable": True},
        {"params": params[3:], "kappa": 0.5},
        {"params": more, "capacity": 2},
    ]
    optimizer = Config("AdamCM")(groups)
    train(optimizer, [*params, *more], range(1))
    assert [len(batch.rows) for batch in optimizer._planner.planned().batches] == [2, 1, 1, 1]


def test_a_plan_is_kept_until_something_changes() -> None:
    params = parameters()
    optimizer = Config("AdamCM")(params)

    def next_plan() -> _engines.Plan:
        train(optimizer, params, range(1))
        return optimizer._planner.plan

    first = next_plan()
    assert next_plan() is first
    changes = [
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
        lambda: optimizer.param_groups[0].update(amsgrad=True),
        lambda: optimizer.state[params[0]].update(step=torch.tensor(5.0)),
        lambda: optimizer.state.pop(params[1]),
    ]
    for change in changes:
        before = optimizer._planner.plan
        change()
        assert next_plan() is not before
    assert optimizer.state[params[0]]["step"] == 5.0 + 2


class Fused(SimpleNamespace):
    """A fused engine that takes one parameter at most, and has the eager one do the work."""

    name = "fused"
    reads_amp = False

    def objection(self, batch: _engines.ParamBatch) -> str | None:
        return "too many parameters" if len(batch.rows) > 1 else None

    def prepare(self, batch: _engines.ParamBatch) -> None:
        eager.prepare(batch)

    def square_sums(self, batch: _engines.ParamBatch) -> Tensor:
        return eager.square_sums(batch)

    def step(self, batch: _engines.ParamBatch, norms: Norms) -> None:
        self.steps += 1
        eager.step(batch, norms)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Fused:
    engine = Fused(steps=0)
    monkeypatch.setattr(dispatch, "FUSED", (engine,))
    return engine


@pytest.mark.parametrize(("choice", "steps"), [(None, 3), (True, 3), (False, 0)])
def test_a_fused_engine_is_taken_where_it_can(
    fused: Fused, choice: bool | None, steps: int
) -> None:
    params, plain = parameters()[:1], parameters()[:1]
    optimizer = Config("AdamCM")(params, fused=choice)
    train(optimizer, params, range(3))
    train(Config("AdamCM")(plain, fused=False), plain, range(3))
    assert fused.steps == steps
    assert optimizer.engine == ("fused" if steps else "eager")
    assert equal(params, plain)


def test_its_objection_is_the_reason_and_none_falls_back(fused: Fused) -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"fused=True: fused: too many parameters"):
        Config("AdamCM")(params, fused=True)
    demanding = Config("AdamCM")(params)
    demanding.param_groups[0]["fused"] = True
    with pytest.raises(RuntimeError, match=r"fused=True: fused: too many parameters"):
        train(demanding, params, range(1))
    assert equal(params, before)
    assert all(state["step"] == 0 for state in demanding.state.values())
    optimizer = Config("AdamCM")(params)
    train(optimizer, params, range(1))
    assert optimizer.engine == "eager"
    assert fused.steps == 0


def test_norm_accumulates_in_float64() -> None:
    """Squares of 1e30 overflow float32; the norm does not."""
    big = torch.full((4,), 1e30)
    assert joint_norm([(big, None)] * 2) == pytest.approx(1e30 * 8**0.5)


def test_norm_of_a_tensor_in_pieces() -> None:
    """Squares of a large tensor, whose sum float32 would be 1e-3 off."""
    large = torch.linspace(0.0, 1.0, 3_000_001)
    expected = math.fsum(x * x for x in large.tolist())
    assert float(square_sum(large)) == pytest.approx(expected, rel=1e-13)
    assert float(square_sum(large.view(1, -1).expand(2, -1))) == pytest.approx(2 * expected)
    assert float(square_sum(torch.empty(0))) == 0.0
