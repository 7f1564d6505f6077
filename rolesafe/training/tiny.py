"""Tiny random llamas and tokenizers, for the demo and for tests. They need no download."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
"""Template whose delimiters are ordinary words of the vocabulary, as in Zephyr or Llama 2: any text may hold them."""

TEXT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The same for a tokenizer that keeps spaces: the space before a reply belongs to its first token."""


_ROLES = ("system", "developer", "user", "assistant", "tool")


def tiny_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token per word, per punctuation mark and per delimiter of :data:`TEMPLATE`."""
    specials = ["<pad>", "<unk>", "</s>"]
    delimiters = [f"<|{role}|>" for role in _ROLES]
    vocabulary = {word: i for i, word in enumerate([*specials, *delimiters, *sorted(set(words))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Strip()
    # Words, delimiters, single punctuation marks; white space separates and is dropped.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"<\|\w+\|>|</?\w+>|\w+|[^\w\s]"), behavior="removed", invert=True),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def text_tokenizer(texts: Iterable[str], size: int = 4096) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on `texts`, with special tokens as delimiters, as in large models.

    Args:
        texts: Training texts.
        size: Largest size of the vocabulary.
    """
    specials = ["<pad>", "<unk>", "</s>", *(f"<|{role}|>" for role in _ROLES)]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        padding_side="left",
        additional_special_tokens=specials[3:],
    )
    tokenizer.chat_template = TEXT_TEMPLATE
    return tokenizer


def tiny_llama(
    vocab_size: int, *, seed: int, hidden: int = 64, layers: int = 3, heads: int = 4, head_dim: int = 16
) -> LlamaForCausalLM:
    """Return a random llama, the same for the same seed."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        tie_word_embeddings=True,
        initializer_range=min(0.1, hidden**-0.5),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
