"""Fine-tuning: text, model and training against computations by hand; the choice; what is drawn."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steppe.commands.numbers import plain
from steppe.compare.results import TEST, TUNE, StudyResults, load
from steppe.figures.dualadam_finetune import draw, measure
from steppe.figures.small_language import (
    LanguageModel,
    Parts,
    code,
    evaluated,
    language_loss,
    prose,
    run_of,
    split,
    train,
)

SIZES = {
    "lrs": (1e-4, 8e-3),
    "seeds": 2,
    "epochs": 2,
    "characters": 4_000,
    "width": 16,
    "pretraining_epochs": 1,
    "pretraining_characters": 4_000,
}
SETTINGS = {"lr": 4e-3, "weight_decay": 0.1, "switch": 0.16}


@pytest.fixture(scope="module")
def data() -> dict:
    return json.loads(json.dumps(plain(measure(**SIZES)), allow_nan=False))


@pytest.fixture(scope="module")
def study() -> StudyResults:
    """Of each run, the last epochs: there are many, and intervals take their time."""
    whole = load(Path(__file__).parents[2] / "docs/results/digits.json")
    trials = (
        replace(trial, outcome=replace(trial.outcome, curve=trial.outcome.curve[-3:]))
        for trial in whole.trials
        if trial.outcome is not None
    )
    return replace(whole, trials=tuple(trials))


@pytest.fixture
def model() -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModel(context=8, width=16)


@pytest.fixture
def parts() -> Parts:
    return split(code(2_000), context=8)


def test_no_character_is_in_two_parts() -> None:
    text = "".join(map(chr, range(128)))
    parts = split([text], context=7, shares=(0.5, 0.25))
    assert parts.train.flatten().tolist() == list(range(64))
    assert parts.validation.flatten().tolist() == list(range(64, 96))
    assert parts.test.flatten().tolist() == list(range(96, 128))
    assert parts.train.shape == (8, 8)


def test_each_text_gives_its_share_and_a_rest_is_left() -> None:
    parts = split(["a" * 20 + "b" * 10 + "c" * 10, "é" * 40], context=5)
    assert parts.train.tolist() == [[ord("a")] * 6] * 3 + [[ord("?")] * 6] * 3
    assert parts.validation.tolist() == [[ord("b")] * 6, [ord("?")] * 6]
    assert parts.test.tolist() == [[ord("c")] * 6, [ord("?")] * 6]
    other = split(["a" * 20 + "b" * 10 + "d" * 10, "é" * 40], context=5)
    assert parts.fingerprint != other.fingerprint


def test_the_texts_are_prose_and_code() -> None:
    assert "statement" in prose()
    texts = code(40_000)
    assert sum(map(len, texts)) == 40_000
    assert all("def " in text or "class " in text for text in texts)


def test_no_prediction_sees_what_it_predicts(model: LanguageModel, parts: Parts) -> None:
    codes = parts.train[:4, :-1]
    changed = codes.clone()
    changed[:, 5:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(codes)[:, :5], model(changed)[:, :5])
        assert not torch.allclose(model(codes)[:, 5:], model(changed)[:, 5:])


def test_perplexity_is_the_geometric_mean_of_one_over_each_probability(
    model: LanguageModel, parts: Parts
) -> None:
    windows = parts.train[:70]  # more than are evaluated together, and no multiple of it
    with torch.no_grad():
        odds = np.exp(model(windows[:, :-1]).double().numpy())
    probabilities = [
        odds[row, place, following] / odds[row, place].sum()
        for row, window in enumerate(windows.tolist())
        for place, following in enumerate(window[1:])
    ]
    expected = np.prod(np.array(probabilities) ** (-1 / len(probabilities)))
    assert math.exp(evaluated(model, windows)) == pytest.approx(expected, rel=1e-5)
    assert language_loss(model, windows).item() == pytest.approx(math.log(expected), rel=1e-5)


def test_a_run_is_what_it_is_by_hand(model: LanguageModel, parts: Parts) -> None:
    """Adam by hand: decoupled decay, a warm-up over 16 % of the steps times half a cosine."""
    twin = copy.deepcopy(model)
    found = train(model, run_of("adam+warmup", SETTINGS, 3, parts, epochs=2), parts)
    order, losses = torch.Generator().manual_seed(3), []
    steps = 2 * math.ceil(len(parts.train) / 16)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in twin.parameters()]
    rows = [
        r for _ in range(2) for r in torch.randperm(len(parts.train), generator=order).split(16)
    ]
    for step, some in enumerate(rows):
        twin.zero_grad()
        loss = language_loss(twin, parts.train[some])
        loss.backward()
        losses.append(loss.item() * len(some))
        lr = 4e-3 * min(1, (step + 1) / (0.16 * steps))
        lr *= 0.001 + 0.999 * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.no_grad():
            for p, (m, v) in zip(twin.parameters(), moments, strict=True):
                m.lerp_(p.grad, 0.1)
                v.lerp_(p.grad**2, 0.001)
                ahead, spread = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                p.mul_(1 - lr * 0.1).sub_(lr * ahead / (spread.sqrt() + 1e-8))
    halves = np.array(losses).reshape(2, -1).sum(1) / len(parts.train)
    assert found.train == pytest.approx(halves.tolist(), rel=1e-4)
    assert found.validation[-1] == pytest.approx(evaluated(twin, parts.validation), rel=1e-4)
    assert found.test == pytest.approx(evaluated(twin, parts.test), rel=1e-4)


def test_the_same_seed_gives_the_same_numbers(data: dict) -> None:
    state = torch.get_rng_state()
    assert plain(measure(**SIZES)) == data
    assert torch.equal(torch.get_rng_state(), state)


def test_lr_is_chosen_on_validation_data_alone(data: dict) -> None:
    for name, found in data["optimizers"].items():
        ends = {each["lr"]: np.mean(each["ends"]) for each in data["by_lr"][name]}
        assert list(ends) == [1e-4, 8e-3]
        assert found["lr"] == min(ends, key=ends.__getitem__)
        assert found["perplexity"]["mean"][-1] == pytest.approx(ends[found["lr"]], rel=1e-5)
        assert len(found["test"]) == 2


def test_dual_adam_is_its_control_where_gradients_are_small(
    model: LanguageModel, parts: Parts
) -> None:
    losses = {
        name: train(copy.deepcopy(model), run_of(name, SETTINGS, 0, parts, epochs=3), parts).train
        for name in ("adamw", "adam+warmup", "dualadam")
    }
    assert losses["dualadam"] == pytest.approx(losses["adam+warmup"], rel=1e-3)
    assert losses["adamw"] != pytest.approx(losses["adam+warmup"], rel=1e-2)


def test_a_study_is_drawn_instead(study: StudyResults) -> None:
    data = json.loads(json.dumps(plain(measure(study=study)), allow_nan=False))
    assert next(iter(data["optimizers"])) == "adamw"
    for name, found in data["optimizers"].items():
        runs = [trial.outcome for trial in study.of(name, TEST)]
        validation = np.array([[each.validation_loss for each in run.curve] for run in runs])
        trained = np.array([[each.train_loss for each in run.curve] for run in runs])
        assert found["perplexity"]["mean"] == pytest.approx(np.exp(validation).mean(0), rel=1e-4)
        assert found["gap"]["mean"] == pytest.approx((validation - trained).mean(0), abs=1e-5)
        assert found["test"] == pytest.approx([math.exp(r.final.test_loss) for r in runs], rel=1e-4)
        tuning = {trial.settings["lr"]: trial for trial in study.of(name, TUNE)}
        for each in data["by_lr"][name]:
            loss = tuning[each["lr"]].outcome.final.validation_loss
            assert each["ends"] == pytest.approx([math.exp(loss)], rel=1e-4)
    figure = draw(data)
    drawn = figure.axes[1].lines[0].get_ydata()
    assert list(drawn) == data["optimizers"]["adamw"]["perplexity"]["mean"]


def test_a_study_without_dual_adam_is_refused(study: StudyResults) -> None:
    others = tuple(each for each in study.contenders if not each.name.startswith("dualadam"))
    with pytest.raises(ValueError, match="no finished runs of DualAdam"):
        measure(study=replace(study, contenders=others))


def test_it_is_drawn(data: dict) -> None:
    figure = draw(data)
    curves, (by_lr, test) = figure.axes[:3], figure.axes[3:]
    assert [len(axes.lines) for axes in curves] == [4, 4, 4]
    assert [label.get_text() for label in test.get_yticklabels()] == list(data["optimizers"])
    means = [np.mean(each["ends"]) for each in data["by_lr"]["adamw"]]
    assert by_lr.lines[0].get_ydata() == pytest.approx(means)
    assert "minus adam+warmup's" in test.texts[2].get_text()


def test_a_run_without_a_finite_loss_is_left_out_of_the_picture(data: dict) -> None:
    lost = copy.deepcopy(data)
    lost["optimizers"]["dualadam"]["test"] = [None, None]
    lost["by_lr"]["dualadam"][0]["ends"] = [None, None]
    for each in lost["differences"]:
        if "dualadam" in (each["of"], each["from"]):
            each |= dict.fromkeys(("mean", "low", "high", "p"))
    by_lr, test = draw(lost).axes[3:]
    assert np.isnan(by_lr.lines[4].get_ydata()).tolist() == [True, False]
    assert [bool(each.get_text()) for each in test.texts] == [False, True, False, True]
