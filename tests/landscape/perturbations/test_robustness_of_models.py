"""Models of all kinds are measured, and left to the last bit as they were, whatever happens."""

import copy
import math
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from helpers.tiny_llama import save_tiny_llama
from steppe.compare.models import pretrained
from steppe.landscape import Corruption, Rounding, WeightNoise, robustness
from steppe.landscape.perturbations.rounding import round_to_bits

CLASSES = 3
SMALL = [Rounding(2), Rounding(3, "compensated"), WeightNoise(0.3, draws=2)]


def vectors(count: int = 40) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    pair = (
        torch.randn(count, 6, generator=generator),
        torch.randint(CLASSES, (count,), generator=generator),
    )
    return list(zip(*(each.split(25) for each in pair), strict=True))


def pictures() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(20, 2, 6, 6, generator=generator), torch.arange(20) % CLASSES)]


def sequences() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(20, 5, 6, generator=generator), torch.arange(20) % CLASSES)]


class Sequences(nn.Module):
    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer: Any = {
            "lstm": lambda: nn.LSTM(6, 8, batch_first=True),
            "attention": lambda: nn.MultiheadAttention(6, 2, batch_first=True),
            "transformer": lambda: nn.TransformerEncoderLayer(6, 2, 12, batch_first=True),
        }[layer]()
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        if isinstance(self.layer, nn.MultiheadAttention):
            found = self.layer(inputs, inputs, inputs)[0]
        else:
            found = self.layer(inputs)
        found = found[0] if isinstance(self.layer, nn.LSTM) else found
        output: Tensor = self.head(found.mean(1))
        return output


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 4), nn.Linear(6, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        output: Tensor = self.head((self.one(one) * self.other(other)).tanh())
        return output


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), *between, nn.ReLU(), nn.Linear(12, CLASSES))


def of_kind(kind: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    if kind in ("lstm", "attention", "transformer"):
        model: nn.Module = Sequences(kind)
        model(sequences()[0][0])
        return model, sequences()
    if kind == "transposed":
        layers = nn.ConvTranspose2d(2, 5, 3), nn.ConvTranspose2d(5, 5, 2, groups=5)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(405, CLASSES)), pictures()
    if kind == "batch norm":
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
                             nn.Linear(64, CLASSES)), pictures()  # fmt: skip
    if kind == "tuple":
        data = [((each[0], each[0].flip(0)), each[1]) for each in vectors()]
        return TwoInputs(), data
    if kind == "half":
        return mlp().bfloat16(), [(each[0].bfloat16(), each[1]) for each in vectors()]
    if kind == "double":
        return mlp().double(), [(each[0].double(), each[1]) for each in vectors()]
    model = mlp(nn.Dropout(0.5)) if kind == "dropout" else mlp()
    if kind == "frozen":
        model.requires_grad_(False)
    if kind == "frozen in part":
        model[0].requires_grad_(False)
    if kind in ("weight_norm", "spectral_norm"):
        getattr(parametrizations, kind)(model[0])
    return model, vectors()


KINDS = [
    *("lstm", "attention", "transformer", "transposed", "batch norm", "dropout", "tuple", "half"),
    *("double", "frozen", "frozen in part", "weight_norm", "spectral_norm"),
]


def state(model: nn.Module) -> dict[str, Any]:
    """All that may not change, to the last bit."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "numbers": {name: (id(each), each.detach().clone()) for name, each in named.items()},
        "modes": [each.training for each in model.modules()],
        "flags": [each.requires_grad for each in model.parameters()],
        "grads": [
            None if each.grad is None else (id(each.grad), each.grad.clone())
            for each in model.parameters()
        ],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "python": random.getstate(),
    }


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[x], other[x]) for x in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


def with_gradients(model: nn.Module, data: list[Any]) -> nn.Module:
    """Give it some, and modes of its own."""
    inputs = data[0][0] if isinstance(data[0][0], tuple) else (data[0][0],)
    output = model(*inputs)
    if output.requires_grad:
        output.float().square().mean().backward()
    model.train()
    next(model.children()).eval()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_left_as_it_was(kind: str) -> None:
    model, data = of_kind(kind)
    with_gradients(model, data)
    before = state(model)
    found = robustness(model, data, perturbations=SMALL)
    assert is_same(before, state(model))
    assert found.complete
    assert all(math.isfinite(each.score + each.loss) for each in found.results)
    assert [each.loss != found["clean"].loss for each in found.results[1:]] == [True] * 3


@pytest.mark.parametrize("kind", [x for x in KINDS if "norm" not in x or x == "batch norm"])
def test_scores_are_those_of_a_rounded_copy_in_eval_mode(kind: str) -> None:
    model, data = of_kind(kind)
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for module in copied.modules():
            swap = isinstance(module, nn.ConvTranspose2d) and module.groups == 1
            for param in module.parameters(recurse=False):
                if param.ndim >= 2:
                    rows = param.transpose(0, 1) if swap else param
                    rows.copy_(round_to_bits(rows.flatten(1), 3, "absmax").reshape(rows.shape))
        outputs = [copied(*(x if isinstance(x, tuple) else (x,))) for x, _ in data]
    labels = torch.cat([y for _, y in data])
    found = robustness(model.train(), data, perturbations=[Rounding(3, "absmax")])["3 bits absmax"]
    joined = torch.cat(outputs)
    assert found.score == float((joined.argmax(1) == labels).double().mean())
    loss = float(F.cross_entropy(joined.double(), labels))
    assert found.loss == pytest.approx(loss, rel=1e-2 if kind == "half" else 1e-5)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_a_computed_weight_is_rounded_by_its_parameters(kind: str) -> None:
    """Compensation cannot write into it: it is rounded as without."""
    model, data = of_kind(kind)
    chosen = [Rounding(2), Rounding(2, "compensated")]
    found = robustness(model, data, perturbations=chosen)
    copied = copy.deepcopy(model).eval()
    with torch.no_grad():
        for param in copied[0].parameters():
            if param.ndim >= 2:
                param.copy_(round_to_bits(param.flatten(1), 2, "least error").reshape(param.shape))
    plain = robustness(nn.Sequential(copied[0], *model[1:]), data, perturbations=[])
    # Only the last layer is compensated.
    last = nn.Sequential(nn.Linear(12, CLASSES))
    last[0].load_state_dict(model[2].state_dict())
    with torch.no_grad():
        inner = [(copied[1](copied[0](x)), y) for x, y in data]
    expected = robustness(last, inner, perturbations=chosen)
    assert plain["clean"].loss == pytest.approx(expected["clean"].loss, rel=1e-5)
    for name in ("2 bits least error", "2 bits compensated"):
        assert found[name].loss == pytest.approx(expected[name].loss, rel=1e-5)
    assert found["2 bits compensated"].loss != found["2 bits least error"].loss


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(self.embedding(tokens).mean(1))
        return output


def test_tied_weights_are_changed_once_and_stay_tied() -> None:
    torch.manual_seed(0)
    model = Tied()
    data = [(torch.randint(20, (30, 5)), torch.randint(20, (30,)))]
    found = robustness(model, data)
    assert model.head.weight is model.embedding.weight
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.head.weight.copy_(round_to_bits(copied.head.weight, 2, "absmax"))
        loss = float(F.cross_entropy(copied(data[0][0]), data[0][1]))
    assert found["2 bits absmax"].loss == pytest.approx(loss, rel=1e-5)
    assert {"dropout 5", "swaps 1"} <= {each.name for each in found.results}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def language_batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for count in (6, 3):
        tokens = torch.randint(2, 15, (count, 10), generator=generator)
        mask = (torch.arange(10) < torch.randint(4, 11, (count, 1), generator=generator)).long()
        labels = tokens.where(mask == 1, -100)
        batches.append({"input_ids": tokens * mask, "attention_mask": mask, "labels": labels})
    return batches


def test_perplexity_of_a_language_model_with_padding(llama: Path) -> None:
    transformers = pretrained._transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    before, data = state(model), language_batches()
    found = robustness(model, data, perturbations=[*SMALL, Corruption("dropout", 5)])
    assert is_same(before, state(model))
    assert is_same(data, language_batches())
    assert found.metric == "perplexity"
    losses, weights = [], []
    with torch.no_grad():
        for batch in data:
            losses.append(float(model(**batch).loss))
            weights.append(int((batch["labels"][:, 1:] != -100).sum()))
    mean = np.average(losses, weights=weights)
    assert found["clean"].loss == pytest.approx(mean, rel=1e-5)
    assert found["clean"].score == pytest.approx(math.exp(mean), rel=1e-5)
    assert found["clean"].score_error == pytest.approx(math.exp(mean) * found["clean"].loss_error)
    each = found["dropout 5"]
    assert each.change == pytest.approx(each.loss - found["clean"].loss, rel=1e-4)
    assert each.change > 0.01
    assert "of loss" in str(found)
    assert math.isnan(found.brier)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_sequence_classifier_and_one_with_an_adapter(llama: Path) -> None:
    transformers = pretrained._transformers()
    import peft

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        llama, num_labels=CLASSES, pad_token_id=0
    )
    data = [
        {**batch, "labels": torch.arange(len(batch["labels"])) % CLASSES}
        for batch in language_batches()
    ]
    with torch.no_grad():
        logits = torch.cat([model.eval()(**each).logits for each in data])
    labels = torch.cat([each["labels"] for each in data])
    found = robustness(model, data, perturbations=[*SMALL, Corruption("swaps", 5)])
    assert found.metric == "accuracy"
    assert found["clean"].score == float((logits.argmax(1) == labels).double().mean())
    assert found["clean"].loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(model, config)
    before = state(adapted)
    again = robustness(adapted, data, perturbations=SMALL)
    assert is_same(before, state(adapted))
    # Its second factor is zero until it is trained.
    assert again["clean"].loss == pytest.approx(found["clean"].loss, rel=1e-5)


class Stopping(nn.Module):
    """Presses Ctrl-C, or fails, in its n-th pass."""

    def __init__(self, model: nn.Module, at: int, fails: bool = False) -> None:
        super().__init__()
        self.model, self.at, self.fails = model, at, fails

    def forward(self, inputs: Tensor) -> Tensor:
        COUNT.append(1)
        if len(COUNT) == self.at:
            if self.fails:
                raise ArithmeticError("no")
            signal.raise_signal(signal.SIGINT)
        output: Tensor = self.model(inputs)
        return output


COUNT: list[int] = []


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    COUNT.clear()
    yield
    COUNT.clear()


def test_ctrl_c_at_any_pass_keeps_what_there_is_and_the_model() -> None:
    data = vectors()
    torch.manual_seed(0)
    inner = mlp()

    def measured(at: int) -> Any:
        model = Stopping(inner, at)
        before = state(model)
        COUNT.clear()
        try:
            return robustness(model, data, perturbations=SMALL)
        finally:
            assert is_same(before, state(model))

    whole = measured(0)
    count = len(COUNT)
    assert whole.complete
    lengths = []
    for at in range(1, count + 1, 2):
        try:
            found = measured(at)
        except KeyboardInterrupt:
            # Without the clean results there is nothing.
            assert at < 8
            continue
        lengths.append(len(found.results))
        # Torch ends the batch first; after the last one nothing is left to be interrupted.
        assert not found.complete or at >= count - 1
        assert found.results == whole.results[: len(found.results)]
    assert {1, 2, 3} <= set(lengths)
    assert lengths == sorted(lengths)


def test_ctrl_c_while_weights_are_put_back_waits_until_they_are() -> None:
    torch.manual_seed(0)
    model, data = mlp(), vectors()
    before = state(model)

    original, calls = Tensor.copy_, [0]

    def copy_(self: Tensor, other: Any, *rest: Any) -> Tensor:
        calls[0] += 1
        signal.raise_signal(signal.SIGINT)
        return original(self, other, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "copy_", copy_)
        found = robustness(model, data, perturbations=[WeightNoise(0.5, draws=1), Rounding(2)])
    assert calls[0] >= 2
    assert not found.complete
    assert is_same(before, state(model))


def test_an_error_in_any_pass_leaves_the_model() -> None:
    torch.manual_seed(0)
    inner, data = mlp(), vectors()
    robustness(Stopping(inner, 0), data, perturbations=SMALL)
    for at in range(1, len(COUNT) + 1):
        model = Stopping(inner, at, fails=True)
        before = state(model)
        COUNT.clear()
        with pytest.raises(ArithmeticError):
            robustness(model, data, perturbations=SMALL)
        assert is_same(before, state(model))


def vandal(model: nn.Module, data: Any) -> float:
    """Change all that can be changed."""
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    model.train()
    model.requires_grad_(False)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
        param.add_(1)
    for buffer in model.buffers():
        buffer.zero_()
    model.register_buffer("mine", torch.ones(1))
    model.note = "mine"  # type: ignore[assignment]
    return 1.5


def test_what_measures_change_is_put_back() -> None:
    model, data = of_kind("batch norm")
    with_gradients(model, data)
    before = state(model)
    seen: list[float] = []

    def after(model: nn.Module, data: Any) -> Tensor:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(float(next(model.parameters()).sum()))
        return torch.rand(1)

    measures = {"vandal": vandal, "after": after}
    found = robustness(model, data, perturbations=[], measures=measures)
    assert is_same(before, state(model))
    assert not hasattr(model, "note")
    assert found.own["vandal"] == 1.5
    assert seen == [float(next(model.parameters()).detach().sum())]
    # Drawn alike each time.
    assert robustness(model, data, perturbations=[], measures=measures).own == found.own


def test_an_instrument_may_be_a_measure_of_ones_own() -> None:
    from steppe.landscape import sharpness

    def flatness(model: nn.Module, data: Any) -> float:
        return sharpness(model, F.cross_entropy, data, rho=0.05).value

    model, data = mlp(), vectors()
    found = robustness(model, data, perturbations=[], measures={"sharpness": flatness})
    assert found.own["sharpness"] == pytest.approx(flatness(model, data))


def test_ctrl_c_in_a_measure_keeps_what_there_is() -> None:
    def stop(model: nn.Module, data: Any) -> float:
        next(model.parameters()).zero_()
        signal.raise_signal(signal.SIGINT)
        return 0.0

    model, data = mlp(), vectors()
    before = state(model)
    measures = {"first": lambda model, data: 1.0, "stop": stop, "last": lambda model, data: 2.0}
    found = robustness(model, data, perturbations=[Rounding(2)], measures=measures)
    assert is_same(before, state(model))
    assert not found.complete
    assert found.own == {"first": 1.0}
    assert len(found.results) == 2
    assert math.isfinite(found.brier)
