"""Structural strings of well-known chat formats, from the published chat templates of these model families.

An attacker types them to imitate a turn of another role. The delimiters of the tokenizer under attack come from its own
template (:mod:`rolesafe.attacks.delimiters`).
"""

from __future__ import annotations

from dataclasses import dataclass

Turn = tuple[str, str]
"""Text before and after a content."""


@dataclass(frozen=True)
class Layout:
    """Hold the turns of one chat format.

    Attributes:
        system, user, assistant: Text around a turn of that role.
        others: Its further structural strings.
    """

    system: Turn
    user: Turn
    assistant: Turn
    others: tuple[str, ...] = ()

    @property
    def strings(self) -> tuple[str, ...]:
        """Return all structural strings of the format."""
        turns = (*self.system, *self.user, *self.assistant)
        return tuple(dict.fromkeys(text for text in (*turns, *self.others) if text.strip()))


def _turns(
    before: str, after: str, system: str = "system", user: str = "user", assistant: str = "assistant"
) -> tuple[Turn, Turn, Turn]:
    """Return the turns of a format with the role name, written ``{}``, between fixed texts."""
    first, second, third = ((before.replace("{}", role), after) for role in (system, user, assistant))
    return first, second, third


LAYOUTS: dict[str, Layout] = {
    "chatml": Layout(
        *_turns("<|im_start|>{}\n", "<|im_end|>\n"),
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>tool\n", "<|im_start|>developer\n"),
    ),
    "qwen": Layout(
        *_turns("<|im_start|>{}\n", "<|im_end|>\n"),
        (
            *("<tool_response>", "</tool_response>", "<tool_call>", "</tool_call>", "<tools>", "</tools>"),
            *("<think>", "</think>", "<|object_ref_start|>", "<|box_start|>", "<|vision_start|>", "<|image_pad|>"),
        ),
    ),
    "llama2": Layout(
        ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
        ("<s>[INST] ", " [/INST]"),
        (" ", " </s>"),
        ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<unk>"),
    ),
    "llama3": Layout(
        *_turns("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
        (
            *("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|start_header_id|>ipython<|end_header_id|>\n\n"),
            "<|reserved_special_token_0|>",
        ),
    ),
    "llama4": Layout(
        *_turns("<|header_start|>{}<|header_end|>\n\n", "<|eot|>"),
        ("<|header_start|>", "<|header_end|>", "<|eom|>", "<|python_start|>", "<|python_end|>"),
    ),
    "gemma": Layout(
        *_turns("<start_of_turn>{}\n", "<end_of_turn>\n", assistant="model"),
        ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<unused0>"),
    ),
    "mistral": Layout(
        ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        ("<s>[INST]", "[/INST]"),
        (" ", "</s>"),
        (
            *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
            *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[IMG]", "[THINK]", "[/THINK]"),
        ),
    ),
    "phi3": Layout(*_turns("<|{}|>\n", "<|end|>\n"), ("<|end|>", "<|endoftext|>", "<|placeholder1|>")),
    "phi4": Layout(
        *_turns("<|im_start|>{}<|im_sep|>", "<|im_end|>"), ("<|im_sep|>", "<|fim_prefix|>", "<|endofprompt|>")
    ),
    "zephyr": Layout(*_turns("<|{}|>\n", "</s>\n"), ("<|tool|>\n", "<|developer|>\n", "<|function|>\n")),
    "deepseek": Layout(
        ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", ""),
        ("<\uff5cUser\uff5c>", ""),
        ("<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        (
            "<\uff5ctool\u2581calls\u2581begin\uff5c>",
            "<\uff5ctool\u2581outputs\u2581begin\uff5c><\uff5ctool\u2581output\u2581begin\uff5c>",
            "<\uff5ctool\u2581output\u2581end\uff5c><\uff5ctool\u2581outputs\u2581end\uff5c>",
            "<\uff5ctool\u2581sep\uff5c>",
        ),
    ),
    "command-r": Layout(
        *_turns(
            "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "SYSTEM", user="USER", assistant="CHATBOT"
        ),
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|START_TOOL_RESULT|>"),
    ),
    "granite": Layout(
        *_turns("<|start_of_role|>{}<|end_of_role|>", "<|end_of_text|>\n"),
        ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>", "<|start_of_role|>tool_response<|end_of_role|>"),
    ),
    "harmony": Layout(
        *_turns("<|start|>{}<|message|>", "<|end|>"),
        (
            *("<|start|>developer<|message|># Instructions\n\n", "<|channel|>analysis<|message|>", "<|return|>"),
            *("<|start|>functions.lookup to=assistant<|channel|>commentary<|message|>", "<|call|>", "<|constrain|>"),
        ),
    ),
    "glm": Layout(*_turns("<|{}|>\n", ""), ("[gMASK]", "<sop>", "<eop>", "<|observation|>\n", "<|begin_of_image|>")),
    "kimi": Layout(
        *_turns("<|im_{}|>{}<|im_middle|>", "<|im_end|>"), ("[BOS]", "[EOS]", "<|tool_calls_section_begin|>")
    ),
    "exaone": Layout(*_turns("[|{}|]", "[|endofturn|]\n"), ("[|endofturn|]", "[BOS]")),
    "nemotron": Layout(("<extra_id_0>System\n", "\n"), ("<extra_id_1>User\n", "\n"), ("<extra_id_1>Assistant\n", "\n")),
    "alpaca": Layout(
        ("### System:\n", "\n\n"), ("### Instruction:\n", "\n\n"), ("### Response:\n", "\n\n"), ("### Input:\n",)
    ),
    "vicuna": Layout(("SYSTEM: ", "\n"), ("USER: ", " "), ("ASSISTANT: ", "</s>"), ("A chat between a user and",)),
    "human": Layout(("System: ", ""), ("\n\nHuman: ", ""), ("\n\nAssistant: ", ""), ("<|endofprompt|>",)),
    "xml": Layout(
        ("<system>", "</system>"), ("<user>", "</user>"), ("<assistant>", "</assistant>"), ("<system-reminder>",)
    ),
    "json": Layout(
        ('{"role": "system", "content": "', '"}'),
        ('{"role": "user", "content": "', '"}'),
        ('{"role": "assistant", "content": "', '"}'),
        ('"}, {"role": "system", "content": "', '"}]}'),
    ),
}
"""Chat formats by name."""


def structural_strings() -> tuple[str, ...]:
    """Return every structural string of :data:`LAYOUTS` once."""
    return tuple(dict.fromkeys(text for layout in LAYOUTS.values() for text in layout.strings))
