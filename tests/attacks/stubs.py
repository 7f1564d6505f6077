"""A word-level tokenizer over the generator's vocabulary, a tiny random llama, and a model that follows a script."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rolesafe.tasks import vocabulary

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + '</s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
MARKS = ["<", "|", ">", "/", "s", "system", "user", "assistant", "tool"]


@functools.lru_cache(maxsize=1)
def make_tokenizer() -> Any:
    words = list(dict.fromkeys(["<pad>", "</s>", "<unk>", *MARKS, *vocabulary()]))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # every punctuation mark on its own
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = TEMPLATE
    return made


def make_model(positions: int = 700, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


class Scripted(torch.nn.Module):
    """Answers with what `answer` makes of the prompt's text; `fail_at` raises KeyboardInterrupt in that call."""

    def __init__(self, answer: Callable[[str], str], fail_at: int | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.fail_at = fail_at
        self.calls: list[list[str]] = []
        self.keywords: dict[str, Any] = {}

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **keywords: Any) -> torch.Tensor:
        if self.fail_at == len(self.calls):
            raise KeyboardInterrupt
        tokenizer = make_tokenizer()
        self.keywords = keywords
        rows = zip(input_ids.tolist(), attention_mask.bool().tolist(), strict=True)
        prompts = [tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on]) for ids, mask in rows]
        self.calls.append(prompts)
        new = [[*tokenizer.encode(self.answer(p), add_special_tokens=False), 1] for p in prompts]
        width = max(map(len, new))
        tail = torch.tensor([ids + [0] * (width - len(ids)) for ids in new])
        return torch.cat([input_ids, tail], dim=1)
