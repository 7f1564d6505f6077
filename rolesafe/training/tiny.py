"""A small llama and a word-level tokenizer for it: what the demo trains from scratch in a minute on two cores."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
"""Delimiters are ordinary words of the vocabulary, as in Zephyr or Llama 2: anybody can type them."""

TEXT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The same for a tokenizer that keeps spaces: the one in front of a reply is part of its first token, so that a word is
the same token there as in a sentence, and a prompt does not end with it."""


_ROLES = ("system", "developer", "user", "assistant", "tool")


def tiny_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with a token per word, per punctuation mark and per delimiter of :data:`TEMPLATE`."""
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
    """A tokenizer of pieces of words (byte-level BPE) made from `texts`, with special tokens as delimiters: closer to
    that of a large model, and with no text that it cannot hold.

    Args:
        texts: What the pieces are counted in.
        size: Most tokens.
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
    """A random llama, the same for the same seed."""
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
