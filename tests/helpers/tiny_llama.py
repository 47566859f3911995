"""A random Llama of 2 layers, 32 wide, and its tokenizer, as save_pretrained writes them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer

from steppe.compare.models import pretrained

LINES = ["To be, or not to be, that is the question:", "Whether 'tis nobler in the mind to suffer"]
POSITIONS = 16


def save_tiny_llama(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save it; the same weights each time. Return the folder."""
    # Which finds its way around a torchvision that does not fit.
    transformers = pretrained._transformers()
    words = Tokenizer(WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.train_from_iterator(LINES, WordLevelTrainer(special_tokens=["<unk>", "<eos>"]))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        eos_token="<eos>",
        model_max_length=POSITIONS,
    ).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        # Far from linear, so that a wrong place of a factor is seen.
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]), pretrained._errors_only():
        torch.manual_seed(7)
        transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder
