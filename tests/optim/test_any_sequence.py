"""Whatever happens between steps, the fused engine and plain torch end at the same numbers.

Hypothesis draws sequences of the events that a training run may see, in any order:

- steps with ordinary, zero, tiny (denormal), huge, infinite and NaN gradients, laid out as the
  parameters or otherwise, with some or all gradients missing;
- options changed in mid-run: learning rate, weight decay, betas, maximize, what adds state;
- a checkpoint saved and loaded by a new optimizer, a pickle, a deep copy;
- parameters and their state pruned, turned, moved to other memory, or swapped for clones;
- state of a parameter removed, moments reset;
- parameters added in a group with options of its own;
- the engine or the number of threads changed, also SAM's two passes in the place of one.

One optimizer takes whatever engine is fastest, the other plain torch. Both are in float64, so that
they agree to rounding; a third, with state in low precision, must not crash and must resume bit for
bit.

By hand: ``STEPPE_SEQUENCES=10000 pytest tests/optim/test_any_sequence.py``.
"""

import copy
import os
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor
from torch.nn import Parameter

import steppe

pytestmark = pytest.mark.thorough

SHAPES = [(6, 4), (5,), (), (1, 3), (2, 3, 2)]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("DualAdam", {"switch_rate": 0.1}),
    ("DualAdam", {"switch_rate": 0.1, "scale_free": True}),
    ("InvAdam", {}),
    ("MIAdam", {"switch_rate": 0.1}),
    ("AdamCM", {"capacity": 2}),
    ("AdamCM", {"capacity": 3, "replacement": "fifo", "scope": "tensor", "amsgrad": True}),
    ("AdamCM", {"capacity": 2, "variant": "authors"}),
    ("DualAdamCM", {"capacity": 2, "switch_rate": 0.1}),
    ("SGDCM", {"capacity": 2}),
    ("SGDCG", {"capacity": 2, "momentum": 0.9}),
    ("SGDCG", {"capacity": 0}),
    ("AdamCG", {"capacity": 2}),
    ("RMSpropCG", {"capacity": 2, "centered": True}),
]
FORMATS = (torch.bfloat16, "int8")
CHANGES: list[dict[str, Any]] = [
    {"lr": 0.003},
    {"lr": np.float32(0.01)},
    {"weight_decay": 0.1},
    {"weight_decay": 0.0},
    {"maximize": True},
    {"maximize": False},
]


class Run:
    """One optimizer, its parameters, and what is done to both."""

    def __init__(
        self, method: int, *, sam: bool, fused: bool | None, state_dtype: Any = None
    ) -> None:
        self.name, self.options = METHODS[method]
        self.sam = sam
        self.fused, self.state_dtype = fused, state_dtype
        dtype = torch.float64 if state_dtype is None else torch.float32
        generator = torch.Generator().manual_seed(0)
        shapes = [*SHAPES, *([] if state_dtype is None else [(70, 61)])]
        self.params = [
            Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
            for shape in shapes
        ]
        self.optimizer = self.make(self.params)

    def make(self, params: list[Parameter]) -> Any:
        more = {**self.options, "lr": 0.01, "state_dtype": self.state_dtype, "fused": self.fused}
        base = getattr(steppe, self.name)(params, **more)
        return steppe.SAM(base, rho=0.05, required=False) if self.sam else base

    def set_gradients(self, seed: int, kind: str, missing: set[int], *, turned: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        scales = {"tiny": 1e-310, "huge": 1e100, "zero": 0.0}
        for i, p in enumerate(self.params):
            g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            g *= scales.get(kind, 1.0)
            if kind in ("nan", "inf") and g.numel():
                g.view(-1)[0] = float(kind)
            g = g.to(p.dtype)
            if turned and g.ndim > 1:
                g = g.transpose(0, 1).contiguous().transpose(0, 1)
            p.grad = None if i in missing else g.contiguous() if not turned else g

    def resume(self, how: str) -> None:
        if how == "checkpoint":
            saved = copy.deepcopy(self.optimizer.state_dict())
            groups = [{"params": group["params"]} for group in self.optimizer.param_groups]
            fresh = self.make(groups)
            fresh.load_state_dict(saved)
            self.optimizer = fresh
            return
        pair = self.params, self.optimizer
        self.params, self.optimizer = (
            copy.deepcopy(pair) if how == "copy" else pickle.loads(pickle.dumps(pair))
        )

    def change_data(self, how: str) -> None:
        p = self.params[0]
        state = self.optimizer.state.get(p, {})

        def changed(tensor: Tensor) -> Tensor:
            if how == "prune":
                return tensor[: max(1, len(tensor) - 1)]
            if how == "turn":
                return tensor.transpose(0, 1)
            return tensor.clone()

        shape, p.grad = p.shape, None
        p.data = changed(p.data)
        for name, value in list(state.items()):
            if isinstance(value, Tensor) and value.shape == shape and name != "slot_keys":
                state[name] = changed(value)


@settings(
    max_examples=int(os.environ.get("STEPPE_SEQUENCES", "15")),
    stateful_step_count=20,
    deadline=None,
    derandomize="STEPPE_SEQUENCES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
class Sequences(RuleBasedStateMachine):
    """Events in any order, on two engines at once, and on state in low precision."""

    @initialize(
        method=st.integers(0, len(METHODS) - 1), sam=st.booleans(), format=st.sampled_from(FORMATS)
    )
    def begin(self, method: int, sam: bool, format: Any) -> None:
        self.threads = torch.get_num_threads()
        self.ours = Run(method, sam=sam, fused=None)
        self.theirs = Run(method, sam=sam, fused=False)
        self.low, self.twin = (
            Run(method, sam=sam, fused=None, state_dtype=format) for _ in range(2)
        )
        self.runs = [self.ours, self.theirs, self.low, self.twin]
        self.seed = 0

    @rule(
        kind=st.sampled_from(["usual"] * 6 + ["zero", "tiny", "huge"]),
        missing=st.sets(st.integers(0, 4), max_size=5),
        turned=st.booleans(),
    )
    def step(self, kind: str, missing: set[int], turned: bool) -> None:
        self.seed += 1
        for run in self.runs:
            run.set_gradients(self.seed, kind, missing, turned=turned)
            run.optimizer.step()
        self.compare()

    @rule(kind=st.sampled_from(["nan", "inf"]))
    def step_and_go_back(self, kind: str) -> None:
        """See that what is not finite reaches parameters alike; then go on from before."""
        kept = copy.deepcopy([(run.params, run.optimizer) for run in self.runs])
        self.seed += 1
        for run in self.runs:
            run.set_gradients(self.seed, kind, set(), turned=False)
            run.optimizer.step()
        for a, b in zip(self.ours.params, self.theirs.params, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
        for run, (params, optimizer) in zip(self.runs, kept, strict=True):
            run.params, run.optimizer = params, optimizer

    @rule(change=st.sampled_from(CHANGES))
    def change_options(self, change: dict[str, Any]) -> None:
        for run in self.runs:
            run.optimizer.param_groups[0].update(change)

    @rule(how=st.sampled_from(["checkpoint", "copy", "pickle"]))
    def resume(self, how: str) -> None:
        # The twin goes on as it is: what resumes must end where it does.
        for run in self.runs[:3]:
            run.resume(how)

    @rule(how=st.sampled_from(["prune", "turn", "move"]))
    def change_data(self, how: str) -> None:
        for run in (self.ours, self.theirs):
            run.change_data(how)

    @rule(index=st.integers(0, 4))
    def begin_a_parameter_anew(self, index: int) -> None:
        for run in self.runs:
            run.optimizer.state.pop(run.params[index], None)

    @rule(index=st.integers(0, 4))
    def reset_moments(self, index: int) -> None:
        for run in (self.ours, self.theirs):
            state = run.optimizer.state.get(run.params[index], {})
            for name in state.keys() & {"exp_avg", "momentum_buffer"}:
                state[name] = torch.zeros_like(run.params[index].data)

    @rule(lr=st.sampled_from([0.001, 0.1]))
    def add_a_group(self, lr: float) -> None:
        if len(self.ours.optimizer.param_groups) > 2:
            return
        for run in self.runs:
            p = Parameter(torch.ones(3, 2, dtype=run.params[0].dtype))
            run.params.append(p)
            run.optimizer.add_param_group({"params": [p], "lr": lr})

    @rule(threads=st.sampled_from([1, 2, 3]))
    def change_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    @rule()
    def change_engine(self) -> None:
        self.ours.fused = False if self.ours.fused is None else None
        for group in self.ours.optimizer.param_groups:
            group["fused"] = self.ours.fused

    @precondition(lambda self: self.ours.sam)
    @rule()
    def two_passes(self) -> None:
        """Step with SAM's gradients, at other parameters, which are given back exactly."""
        self.seed += 1
        for run in self.runs:
            run.set_gradients(self.seed, "usual", set(), turned=False)
            before = [p.detach().clone() for p in run.params]
            with run.optimizer.perturbed():
                run.set_gradients(-self.seed, "usual", set(), turned=False)
            for p, old in zip(run.params, before, strict=True):
                torch.testing.assert_close(p.data, old, rtol=0.0, atol=0.0, equal_nan=True)
            run.optimizer.step()
        self.compare()

    def compare(self) -> None:
        pairs = zip(self.ours.params, self.theirs.params, strict=True)
        for i, (a, b) in enumerate(pairs):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, equal_nan=True)
            ours, theirs = (
                run.optimizer.state.get(p, {}) for run, p in ((self.ours, a), (self.theirs, b))
            )
            assert ours.keys() == theirs.keys(), i
            for name in ours.keys() & {"step", "replacements", "slot_births"}:
                assert torch.equal(ours[name], theirs[name]), name
        for a, b in zip(self.low.params, self.twin.params, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
            assert torch.equal(a.nan_to_num(), b.nan_to_num())

    def teardown(self) -> None:
        if hasattr(self, "threads"):
            torch.set_num_threads(self.threads)


TestSequences = Sequences.TestCase
