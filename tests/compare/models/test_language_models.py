"""Models against the text read at once, their formulas written out, and published counts."""

import copy
import math
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from steppe import SAM
from steppe.compare.data.text import blocks
from steppe.compare.models.language_models import (
    LANGUAGE_MODELS,
    LSTM,
    MAX_TOKENS,
    Transformer,
    columns,
    find_language_model,
)
from steppe.landscape import ggn, hessian

WORDS = 11
models = pytest.mark.parametrize("name", LANGUAGE_MODELS)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, WORDS, shape, generator=torch.Generator().manual_seed(0))


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


def small_lstm(dropout: float = 0.0) -> LSTM:
    torch.manual_seed(0)
    return LSTM(WORDS, width=6, depth=2, dropout=dropout, bound=0.5)


def small_transformer(dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    return Transformer(WORDS, width=8, depth=2, heads=2, dropout=dropout)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Zaremba et al. 2014, section 4.1: embedding, four gates with two biases, output.
        ("lstm", 10_000 * 650 + 2 * 4 * (2 * 650**2 + 2 * 650) + 651 * 10_000),
        ("lstm-200", 10_000 * 200 + 2 * 4 * (2 * 200**2 + 2 * 200) + 201 * 10_000),
        ("small-lstm", 10_000 * 128 + 4 * (2 * 128**2 + 2 * 128) + 129 * 10_000),
        # GPT-2's blocks have 12 d² weights and 13 d biases and gains.
        ("transformer", (10_000 + 512 + 2) * 256 + 4 * (12 * 256**2 + 13 * 256)),
        ("small-transformer", (10_000 + 512 + 2) * 128 + 2 * (12 * 128**2 + 13 * 128)),
    ],
)
def test_models_count_what_their_papers_say(name: str, expected: int) -> None:
    model = find_language_model(name, 10_000)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean lstm"):
        find_language_model("lstmm", WORDS)


@models
def test_a_word_changes_nothing_before_it(name: str) -> None:
    torch.manual_seed(0)
    model = find_language_model(name, WORDS).eval()
    text = tokens(2, 7)
    changed = text.clone()
    changed[:, 4] = (changed[:, 4] + 1) % WORDS
    for grad in (True, False):  # without gradients torch may take other kernels
        with torch.set_grad_enabled(grad):
            before, after = model(text), model(changed)
        assert before.shape == (2, 7, WORDS)
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-6


@models
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(name: str) -> None:
    model = find_language_model(name, WORDS)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
        assert loss(model(tokens(2, 7)), tokens(2, 7)).exp() == pytest.approx(WORDS)


@models
def test_weights_and_training_depend_on_the_seed_alone(name: str) -> None:
    def trained(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        model = find_language_model(name, WORDS)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            loss(model(tokens(2, 7)), tokens(2, 7)).backward()
            optimizer.step()
        return list(model.parameters())

    first, second, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("make", [small_lstm, small_transformer])
def test_dropout_is_for_training(make: type) -> None:
    model, text = make(dropout=0.5), tokens(2, 7)
    torch.testing.assert_close(model.eval()(text), make().eval()(text))
    assert not torch.equal(model.train()(text), model(text))


def test_an_lstm_drops_what_goes_into_its_layers_and_out_of_the_last() -> None:
    model = small_lstm(dropout=1.0)
    seen = []
    model.layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(model(tokens(2, 7)), model.head.bias.expand(2, 7, -1))
    assert model.layers.dropout == 1.0
    assert not seen[0].any()


def test_an_lstm_is_its_formulas() -> None:
    """Zaremba et al. 2014, section 3: gates i, f, o and g of what comes from below and before."""
    model, text = small_lstm().double().eval(), tokens(3, 5)
    weights = dict(model.named_parameters())
    below = weights["embedding.weight"][text]
    for layer in range(2):
        hidden = cell = torch.zeros(3, 6, dtype=torch.float64)
        outputs = []
        for step in range(5):
            gates = sum(
                x @ weights[f"layers.weight_{kind}_l{layer}"].T
                + weights[f"layers.bias_{kind}_l{layer}"]
                for x, kind in ((below[:, step], "ih"), (hidden, "hh"))
            )
            i, f, g, o = gates.chunk(4, dim=1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        below = torch.stack(outputs, dim=1)
    expected = below @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(model(text), expected)


def test_a_transformer_is_its_formulas() -> None:
    """Radford et al. 2019: x + attention(norm(x)), x + mlp(norm(x)), tied embeddings."""
    model, text = small_transformer().double().eval(), tokens(3, 5)
    with torch.no_grad():
        for param in model.parameters():  # gains and biases that show
            param.add_(0.1 * torch.randn_like(param))
    weights = dict(model.named_parameters())

    def linear(x: Tensor, weight: str) -> Tensor:
        return x @ weights[weight].T + weights[weight.replace("weight", "bias")]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["embedding.weight"][text] + weights["positions"][:5]
    for block in ("blocks.0", "blocks.1"):
        inputs = linear(norm(x, f"{block}.norm1"), f"{block}.self_attn.in_proj_weight")
        q, k, v = (part.view(3, 5, 2, 4).transpose(1, 2) for part in inputs.chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(4)
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ v
        joined = mixed.transpose(1, 2).reshape(3, 5, 8)
        x = x + linear(joined, f"{block}.self_attn.out_proj.weight")
        inner = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.linear1.weight"))
        x = x + linear(inner, f"{block}.linear2.weight")
    expected = norm(x, "norm") @ weights["embedding.weight"].T
    torch.testing.assert_close(model(text), expected)


def test_a_transformer_reads_at_most_as_far_as_it_has_positions() -> None:
    model = small_transformer()
    assert model(tokens(1, MAX_TOKENS)).shape == (1, MAX_TOKENS, WORDS)
    with pytest.raises(ValueError, match="at most 512 for a transformer, got 513"):
        model(tokens(1, MAX_TOKENS + 1))


@given(st.integers(1, 50), st.integers(1, 12))
def test_columns_go_through_the_text_side_by_side(count: int, size: int) -> None:
    batches = columns(count, size)
    assert len(batches) == math.ceil(count / size)
    assert sorted(block for batch in batches for block in batch) == list(range(count))
    for before, after in pairwise(batches):
        assert after == [block + 1 for block in before][: len(after)]
    assert max(len(batch) for batch in batches) <= size
    assert batches[0][0] == 0


def test_carried_on_a_text_is_read_as_if_at_once() -> None:
    model, text = small_lstm().double().eval(), tokens(8 * 4 + 1)
    cut = blocks(text, 4)
    model.begin()
    found = torch.empty(8, 4, WORDS, dtype=torch.float64)
    for batch in columns(8, 3):  # three blocks, three, and two
        found[batch] = model(cut.inputs[batch]).detach()
        model.advance()
    for first, last in ((0, 3), (3, 6), (6, 8)):
        at_once, _ = model.read(text[None, 4 * first : 4 * last], None)
        torch.testing.assert_close(found[first:last].flatten(0, 1), at_once[0])


def test_two_passes_over_a_batch_start_alike() -> None:
    model, text = small_lstm().eval(), tokens(2, 5)
    fresh = model(text)
    torch.testing.assert_close(model(text), fresh)
    model.advance()  # means nothing while nothing is carried
    torch.testing.assert_close(model(text), fresh)
    model.begin()
    torch.testing.assert_close(model(text), fresh)
    torch.testing.assert_close(model(text), fresh)
    model.advance()
    later = model(text)
    assert (later - fresh).abs().max() > 1e-3
    assert torch.equal(model(text), later)
    model.begin()
    torch.testing.assert_close(model(text), fresh)
    model.advance()
    model.stop()
    torch.testing.assert_close(model(text), fresh)


def test_what_is_carried_is_of_the_weights_and_not_of_those_sam_shifts_to() -> None:
    model, text = small_lstm(), tokens(2, 5)
    _, end = model.read(text, None)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss(model(text), text)
        found.backward()
        return found

    model.begin()
    optimizer.step(closure)
    model.advance()
    torch.testing.assert_close(model(text), model.read(text, end)[0])
    for _ in range(2):  # and so in the batches after it
        _, end = model.read(text, end)
        model.advance()
        torch.testing.assert_close(model(text), model.read(text, end)[0])


def test_gradients_stay_within_a_batch() -> None:
    model, text = small_lstm(), tokens(2, 5)
    _, end = model.read(text, None)
    fixed = end[0].detach(), end[1].detach()
    expected = torch.autograd.grad(model.read(text, fixed)[0].sum(), list(model.parameters()))
    model.begin()
    model(text).sum().backward()
    model.advance()
    model.zero_grad()
    model(text).sum().backward()
    for param, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(param.grad, grad)


def test_what_is_carried_is_not_saved_and_can_be_copied() -> None:
    model, text = small_lstm().eval(), tokens(2, 5)
    kept = model.state_dict().keys()
    model.begin()
    model(text)
    model.advance()
    assert model.state_dict().keys() == kept == dict(model.named_parameters()).keys()
    assert torch.equal(copy.deepcopy(model)(text), model(text))


def test_a_batch_may_not_have_more_columns_than_the_one_before() -> None:
    model = small_lstm().eval()
    model.begin()
    model(tokens(2, 5))
    model.advance()
    before = model(tokens(2, 5))
    with pytest.raises(ValueError, match="at most the 2 columns of the previous batch, got 3"):
        model(tokens(3, 5))
    assert torch.equal(model(tokens(2, 5)), before)


@pytest.mark.parametrize("product", ["double-backward", "forward-over-reverse"])
@pytest.mark.parametrize("make", [small_lstm, small_transformer])
def test_curvature_is_that_of_finite_differences(make: type, product: str) -> None:
    """With dropout in the model, and in single precision as in double."""
    model, data = make(dropout=0.2).double(), [(tokens(3, 7), tokens(3, 7).flip(0))]
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    expected = hessian(model, loss, data, product="finite-differences").matvec(vector)
    scale = expected.norm().item()
    found = hessian(model, loss, data, product=product).matvec(vector)
    torch.testing.assert_close(found, expected, atol=1e-6 * scale, rtol=0)
    single = hessian(model.float(), loss, data, product=product).matvec(vector.float())
    torch.testing.assert_close(single.double(), expected, atol=1e-3 * scale, rtol=0)


@pytest.mark.parametrize("make", [small_lstm, small_transformer])
def test_the_gauss_newton_matrix_is_that_of_its_formula(make: type) -> None:
    """JᵀHJ/n, with cross-entropy's H = diag(p) − ppᵀ at each word."""
    model, text = make().double().eval(), tokens(2, 3)
    params = dict(model.named_parameters())
    vector = torch.randn(sum(p.numel() for p in params.values()), dtype=torch.float64)
    found = ggn(model, loss, [(text, text)]).matvec(vector)
    scores = model(text).flatten(0, 1)
    jacobian = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(s, params.values(), retain_graph=True)]
            )
            for s in scores.flatten()
        ]
    )
    p = scores.detach().softmax(-1)
    curved = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p)) / len(p)
    torch.testing.assert_close(found, jacobian.T @ (curved @ (jacobian @ vector)))


@pytest.mark.parametrize("was", [True, False])
@pytest.mark.parametrize("token", [0, WORDS])
def test_a_pass_leaves_torchs_libraries_as_found(
    was: bool, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = torch.backends.cudnn, torch.backends.mkldnn
    for library in libraries:
        monkeypatch.setattr(library, "enabled", was)
    with nullcontext() if token < WORDS else pytest.raises(IndexError):
        small_lstm()(torch.tensor([[token]]))
    assert [library.enabled for library in libraries] == [was, was]


def test_layers_of_a_transformer_start_apart() -> None:
    first, second = small_transformer().blocks
    assert isinstance(first, nn.TransformerEncoderLayer)
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
