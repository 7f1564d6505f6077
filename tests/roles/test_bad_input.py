"""Every refusal is a ValueError that names the argument, what was expected, what came, and the way out."""

import re

import pytest

from rolesafe import RoleConfig
from rolesafe.roles.encoding import encode, encode_one
from tests.roles import chat_templates
from tests.roles.tokenizers import SHAPES, tokenizer_of

USER = {"role": "user", "content": "Hello"}
CHAT = [{"role": "system", "content": "Keep the secret!"}, USER, {"role": "assistant", "content": "Hi"}, USER]


def refused(*fragments: str):
    """The error holds these, in order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, fragments)))


@pytest.mark.parametrize(
    "messages, fragments",
    [
        ([], ["`messages`", "empty", "at least one"]),
        ("Hello", ["`messages`", "expected a list", "got str"]),
        ({"role": "user", "content": "x"}, ["`messages`", "expected a list", "got dict"]),
        (None, ["`messages`", "got NoneType"]),
        ([[USER], []], ["`messages[1]`", "without messages", "Leave it out"]),
        ([[]], ["`messages[0]`", "without messages"]),
        (["Hello"], ["`messages[0]`", "expected a mapping", "got str"]),
        ([[USER], USER], ["`messages[0]`", "expected a mapping", "got list"]),
        ([USER, {"content": "x"}], ["`messages[1]`", "no 'role'", "got ['content']"]),
        ([{"role": "user"}], ["`messages[0]`", "no 'content'", "got ['role']"]),
        ([[USER], [{"role": "user"}]], ["`messages[1][0]`", "no 'content'"]),
        ([{"role": "user", "content": None}], ["`messages[0]['content']`", "got NoneType", "Pass ''"]),
        ([{"role": "user", "content": 3}], ["`messages[0]['content']`", "expected a string", "got int"]),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            ["`messages[0]['content'][0]`", "'type': 'text'", "'image'"],
        ),
        ([{"role": "user", "content": ["x"]}], ["`messages[0]['content'][0]`", "got 'x'"]),
        ([{"role": "admin", "content": "x"}], ["`messages[0]['role']`", "'admin'", "'system'", "RoleConfig"]),
        ([{"role": 0, "content": "x"}], ["`messages[0]['role']`", "unknown role 0"]),
        (
            [{"role": "assistant", "content": "", "tool_calls": [1]}],
            ["`messages[0]`", "'tool_calls'", "Write what the model should read into the content"],
        ),
    ],
)
def test_messages(messages, fragments):
    with refused(*fragments):
        encode(tokenizer_of("chatml"), messages)


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        ({"truncation": True}, ["`max_length`", "truncation=True needs it", "got None"]),
        ({"truncation": True, "max_length": 0}, ["`max_length`", ">= 1", "got 0"]),
        ({"truncation": True, "max_length": 2.5}, ["`max_length`", "got 2.5"]),
        ({"max_length": 9}, ["`max_length`", "no effect", "truncation=True"]),
        ({"padding": "max_length"}, ["`max_length`", "needs it", "got None"]),
        ({"padding": "max_length", "max_length": 5}, ["`max_length`: 5", "longest conversation", "truncation=True"]),
        ({"padding": "most"}, ["`padding`", "'longest'", "got 'most'"]),
        ({"padding_side": "top"}, ["`padding_side`", '"left"', "got 'top'"]),
        ({"return_tensors": "np"}, ["`return_tensors`", '"pt"', "got 'np'"]),
        ({"config": {"roles": []}}, ["`config`", "RoleConfig", "got {'roles': []}"]),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            ["`continue_final_message`", "add_generation_prompt=True", "at most one"],
        ),
        ({"template_kwargs": [1]}, ["`template_kwargs`", "a mapping", "got [1]"]),
        ({"template_kwargs": {"messages": []}}, ["`template_kwargs`", "'messages'", "leave it out"]),
        ({"chat_template": 3}, ["`chat_template`", "got int"]),
        ({"chat_template": "short"}, ["`chat_template`", "'short'", '"default"']),
        ({"chat_template": "{% for %}"}, ["`chat_template`", "does not compile", "Pass another one"]),
        ({"chat_template": "{{ x | nonsense }}"}, ["`chat_template`", "nonsense", "Pass another one"]),
        ({"variable_roles": "system"}, ["`variable_roles`", "a mapping", "got 'system'"]),
        ({"variable_roles": {"tools": "system"}}, ["`variable_roles`", "`template_kwargs`", "got 'tools'"]),
        (
            {"template_kwargs": {"tools": []}, "variable_roles": {"tools": "boss"}},
            ["`variable_roles['tools']`", "unknown role 'boss'"],
        ),
    ],
)
def test_arguments(arguments, fragments):
    with refused(*fragments):
        encode(tokenizer_of("chatml"), CHAT, **arguments)


def test_max_length_too_small_for_what_is_never_cut():
    fragments = ("`max_length`: 8 is too small", "tokens; expected at least", "privileged part", "Raise `max_length`")
    with refused(*fragments):
        encode(tokenizer_of("chatml"), CHAT, truncation=True, max_length=8)
    with refused("`max_length`: 8 is too small", "`messages[1]`"):
        encode(tokenizer_of("chatml"), [CHAT[1:2], CHAT], truncation=True, max_length=8)


def test_ragged_tensor():
    with refused("`padding`", "do not make a tensor", "padding=True"):
        encode(tokenizer_of("chatml"), [CHAT, CHAT[:2]], padding=False)


def test_no_chat_template():
    with refused("`chat_template`", "has no chat template", 'chat_template="default"', "Jinja template"):
        encode(SHAPES["llama3"].build(), CHAT)


def test_no_padding_token():
    tokenizer = SHAPES["words"].build()
    tokenizer.pad_token = tokenizer.eos_token = None
    arguments = {"chat_template": "default", "padding_side": "left"}
    assert encode(tokenizer, CHAT, **arguments)["input_ids"].shape[0] == 1  # nothing to pad
    with refused("`tokenizer`", "neither a padding nor an end-of-sequence token", "tokenizer.pad_token"):
        encode(tokenizer, [CHAT, CHAT[:2]], **arguments)


def test_no_tokenizer():
    with refused("`tokenizer`", "expected a transformers tokenizer", "got str"):
        encode("gpt2", CHAT)

    class Processor:
        tokenizer = tokenizer_of("chatml")

    with refused("`tokenizer`", "got Processor", "Pass its `.tokenizer`"):
        encode(Processor(), CHAT)


def test_tokenizer_without_templates_is_refused():
    class MistralCommonBackend:
        @property
        def added_tokens_decoder(self):
            raise NotImplementedError

    class Own(MistralCommonBackend):
        pass

    with refused("`tokenizer`", "Jinja chat template", "got Own", "tokenizer.json"):
        encode(Own(), CHAT)


# --------------------------------------------------------------------------------------- templates that lose a message


def test_template_that_refuses_a_role():
    with refused("`messages`", "System role not supported", "refuses role 'system'", '"default"'):
        encode(tokenizer_of("gemma2"), CHAT)


def test_template_that_refuses_an_order():
    with refused("`messages`", "must alternate", "in an order"):
        encode(tokenizer_of("llama2"), [USER, USER])


def test_template_that_loses_the_system_message():
    assert "Keep" not in tokenizer_of("mistral-v3").apply_chat_template(CHAT[:3], tokenize=False)
    with refused("`messages`", "loses message 0 (role 'system')"):
        encode(tokenizer_of("mistral-v3"), CHAT[:3])


@pytest.mark.parametrize(
    "body, fault",
    [
        ("{% if m.role == 'user' %}{{ m.content }}{% endif %}", "loses message 0 (role 'system')"),
        ("{{ m.parts[0].text }}", "it says"),
        ("{{ m.content | wordwrap(20) }}", "cannot follow"),
        ("{{ m.content | length }}", "loses message 0"),
    ],
)
def test_template_that_garbles_messages(body, fault):
    template = "{% for m in messages %}" + body + "{% endfor %}"
    with refused("`messages`", fault, "`chat_template`"):
        encode(tokenizer_of("chatml"), CHAT[:2], chat_template=template)


def test_errors_of_one_conversation_name_its_place():
    with refused("`dialogue[0]['role']`"):
        encode_one(tokenizer_of("chatml"), [{"role": "x", "content": ""}], argument="dialogue")


def test_unknown_role_lists_the_declared_ones():
    config = RoleConfig(roles=("owner", "model"), privileged=("owner",), generated="model")
    with refused("'user'", "'owner', 'model'"):
        encode(tokenizer_of("chatml"), [USER], config=config)


def test_templates_under_test_render():
    names = [name for name in vars(chat_templates) if name.isupper() and not name.startswith("_")]
    assert {getattr(chat_templates, name) for name in names} <= {shape.template for shape in SHAPES.values()}
