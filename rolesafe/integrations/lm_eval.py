"""lm-evaluation-harness: the model ``rolesafe``.

    python -m rolesafe.integrations.lm_eval run --model rolesafe --model_args pretrained=DIR --tasks ifeval \\
        --apply_chat_template --system_instruction "Be brief."

The arguments are those of ``lm_eval``. With ``--apply_chat_template`` every token has the role of its message. Without
it a context has the role ``role`` of the model arguments (default: ``user``). Continuations and replies have the role
of generated tokens.

Legend: B rows, T tokens, V ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rolesafe.attacks.replies import context_size, end_ids
from rolesafe.extras import require
from rolesafe.patching import is_patched
from rolesafe.patching.modes import evaluating
from rolesafe.retrain.loading import load_chat_model
from rolesafe.roles.encoding import EncodedConversation, collate, encode_one, padding_id
from rolesafe.roles.role import role_id

LM: Any = require("lm_eval.api.model", "lm-eval").LM
register_model: Any = require("lm_eval.api.registry", "lm-eval").register_model

MAX_GEN_TOKS = 256
"""Longest reply where a task does not say it, as in lm-eval."""

Tokens = tuple[list[int], list[int]]
"""Token ids and role ids."""


@register_model("rolesafe")
class RolesafeLM(LM):
    """A role-aware model under lm-eval.

    Args:
        pretrained: Directory or hub id of a model with a role layer.
        role: Role of contexts without a chat template.
        batch_size: Rows of a batch; "auto" is not supported.
        max_batch_size: Not used.
        device: Such as "cpu" or "cuda"; None for a GPU where there is one.
        dtype: "auto" (as saved) or the name of a torch dtype.

    Raises:
        ValueError: The model is not role-aware, or an argument is invalid.
    """

    def __init__(
        self,
        pretrained: str,
        role: str = "user",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        super().__init__()
        if not str(batch_size or 1).isdigit() or int(batch_size or 1) < 1:
            raise ValueError(f"`batch_size`: expected a number >= 1, got {batch_size!r}. Pass a number.")
        self.batch_size = int(batch_size or 1)
        model, self.tokenizer = load_chat_model(pretrained, device, dtype)
        if not is_patched(model) and hasattr(model, "get_base_model"):  # an adapter around a patched model
            model = model.get_base_model()
        if not is_patched(model):
            raise ValueError(
                f"`pretrained`: expected a role-aware model, got {pretrained!r}, which has none. Use --model hf."
            )
        self.model, self.config = model, model.rolesafe_config
        self.name = pretrained
        self.role = role_id(role, self.config.roles, argument="role")
        self.ends = end_ids(model, self.tokenizer)
        self.context = context_size(model)
        self._is_chat = False

    # ---------------------------------------------------------------------------------------------------------- prompts

    @property
    def tokenizer_name(self) -> str:
        """Name for lm-eval's cache of requests."""
        return self.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the chat template for lm-eval's record."""
        template = self.tokenizer.chat_template
        return template if isinstance(template, str) else json.dumps(template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as JSON: it is encoded with roles when it is used, not printed here."""
        self._is_chat = True
        return json.dumps({"messages": chat_history, "generate": add_generation_prompt}, ensure_ascii=False)

    def _prompt(self, context: str) -> Tokens:
        if self._is_chat:
            given = json.loads(context)
            one = encode_one(
                self.tokenizer,
                given["messages"],
                config=self.config,
                add_generation_prompt=given["generate"],
                continue_final_message=not given["generate"],
            )
            return one.input_ids, one.role_ids
        ids = self._ids(context, True) or [self._first()]
        return ids, [self.role] * len(ids)

    def _ids(self, text: str, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special, split_special_tokens=True).input_ids)

    def _first(self) -> int:
        """Return the token before an empty context."""
        found = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, *self.ends]
        return next(i for i in found if i is not None)

    def _pair(self, context: str, continuation: str) -> tuple[Tokens, list[int]]:
        """Return a context and the ids of its continuation; a space at their border belongs to the continuation."""
        if self._is_chat or not context:
            return self._prompt(context), self._ids(continuation, False)
        bare = context.rstrip()
        whole = self._ids(context + continuation, True)
        start = len(self._ids(bare, True)) if bare else 0
        ids = whole[:start] or [self._first()]
        return (ids, [self.role] * len(ids)), whole[start:]

    # ---------------------------------------------------------------------------------------------------------- scoring

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and True where it is the greedy one."""
        pairs = [self._pair(*request.args) for request in requests]
        return self._score([(*prompt, continuation) for prompt, continuation in pairs])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of the context where it is longer."""
        utils = require("lm_eval.utils", "lm-eval")
        rows: list[tuple[list[int], list[int], list[int]]] = []
        counts = []
        size = (self.context or 2048) - 1
        for request in requests:
            windows = utils.get_rolling_token_windows(
                self._ids(request.args[0], False), self._first(), max_seq_len=size, context_len=1
            )
            before = len(rows)
            for context, continuation in map(utils.make_disjoint_window, windows):
                rows.append((list(context), [self.role] * len(context), list(continuation)))
            counts.append(len(rows) - before)
        scores = iter(self._score(rows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def _score(self, rows: Sequence[tuple[list[int], list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of continuations after contexts of ids and roles."""
        found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        for some in self._batches([len(ids) + len(after) for ids, _, after in rows]):
            encoded = [
                self._whole(ids + after, roles + [self.config.generated_id] * len(after))
                for ids, roles, after in (rows[i] for i in some)
            ]
            inputs = self._inputs(encoded, "right")
            with torch.no_grad(), evaluating(self.model):
                logits = self.model(**inputs).logits  # (B, T, V)
            for b, i in enumerate(some):
                ids, _, after = rows[i]
                if not after:
                    continue
                start = len(ids) - 1
                scores = logits[b, start : start + len(after)].float().log_softmax(dim=-1)
                target = torch.tensor(after, device=scores.device)
                total = scores.gather(1, target[:, None]).sum().item()
                found[i] = (total, bool((scores.argmax(dim=-1) == target).all()))
        return found

    # ------------------------------------------------------------------------------------------------------- generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the reply to each context, cut at the texts in ``until``."""
        found = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        for options, members in groups.items():
            given = json.loads(options)
            until = given.pop("until", None) or []
            until = [until] if isinstance(until, str) else list(until)
            longest = int(given.pop("max_gen_toks", MAX_GEN_TOKS))
            if not given.get("temperature"):
                given.pop("temperature", None)
            given["do_sample"] = bool(given.get("do_sample", False)) and "temperature" in given
            prompts = [self._whole(*self._prompt(requests[i].args[0]), room=longest) for i in members]
            for some in self._batches([len(one) for one in prompts]):
                inputs = self._inputs([prompts[k] for k in some], "left")
                with torch.no_grad(), evaluating(self.model):
                    rows = self.model.generate(
                        **inputs,
                        **given,
                        max_new_tokens=longest,
                        eos_token_id=self.ends or None,
                        pad_token_id=padding_id(self.tokenizer),
                        stop_strings=[text for text in until if text] or None,
                        tokenizer=self.tokenizer,
                    )
                for k, row in zip(some, rows[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                    found[members[k]] = self._cut(row, until)
        return found

    def _cut(self, row: list[int], until: Sequence[str]) -> str:
        end = next((k for k, token in enumerate(row) if token in self.ends), len(row))
        text = str(self.tokenizer.decode(row[:end], skip_special_tokens=True))
        return text[: min((at for at in (text.find(stop) for stop in until if stop) if at >= 0), default=len(text))]

    # ---------------------------------------------------------------------------------------------------------- batches

    def _whole(self, ids: list[int], roles: list[int], room: int = 0) -> EncodedConversation:
        """Return tokens that fit into the context.

        Raises:
            ValueError: They do not: cut from the left, the system message would be lost.
        """
        if self.context is not None and len(ids) + room > self.context:
            raise ValueError(
                f"`requests`: expected at most {self.context} tokens with the reply, the model's context, got "
                f"{len(ids)} and a reply of {room}. Lower num_fewshot or max_gen_toks."
            )
        return EncodedConversation(ids, roles, [], [])

    def _inputs(self, encoded: Sequence[EncodedConversation], side: Any) -> dict[str, Any]:
        batch = collate(self.tokenizer, encoded, self.config, padding_side=side)
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Iterate over the indices of batches of similar lengths, the longest first: it needs the most memory."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


def main() -> None:
    """Run ``lm_eval`` with the model ``rolesafe`` registered."""
    require("lm_eval.__main__", "lm-eval").cli_evaluate()


if __name__ == "__main__":
    main()
