"""Chat templates rendered so that every character of the result has a source.

The template runs as in ``apply_chat_template``: same Jinja environment, same variables, the real contents. But its
literals, the messages and the caller's variables are :class:`~rolesafe.roles.traced.Traced` strings, and the compiled
code notes which message is being printed. The text is that of ``apply_chat_template``; :meth:`Renderer.render` checks
this and raises where it is not.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template, get_json_schema

from rolesafe.roles.segments import RefusedError
from rolesafe.roles.traced import (
    PRINTED,
    Kind,
    Source,
    Traced,
    join,
    printed,
    runs_of,
    sources_in,
    to_json,
    traced,
    wrap,
)

DATE = Source(Kind.TEMPLATE, name="strftime_now")


class _Message(dict[str, Any]):
    """A message as the template sees it, with its index in the conversation."""

    _index: int


def make_message(index: int, role: str, content: str | Sequence[str]) -> _Message:
    """Return a message that a template can print: its role is the template's text, its content somebody's."""
    source = Source(Kind.CONTENT, index)
    shown: Any = Traced.of(content, source) if isinstance(content, str) else None
    if shown is None:
        shown = [{"type": "text", "text": Traced.of(text, source)} for text in content]
    message = _Message(role=Traced.of(role, Source(Kind.TEMPLATE, index, "role")), content=shown)
    message._index = index
    return message


class _Turn:
    """Which message is being printed, in one rendering."""

    def __init__(self) -> None:
        self.message: int | None = None
        self.loops: list[tuple[int | None, bool]] = []  # the message before the loop, and whether the loop sets one


_TURN: ContextVar[_Turn] = ContextVar("rolesafe_turn")


_OF_LOOPS = frozenset({"first", "last", "index", "index0", "length"})
_HOOKS = frozenset({"enter_loop", "enter_turn", "assigned", "leave_loop"})


class _Generator(CodeGenerator):
    """Code in which the literals that may be printed are traced."""

    environment: _Environment
    _plain = 0  # inside a comparison or a subscript nothing is printed

    def _literal(self, text: str) -> str:
        return f"environment.literal({self.environment.number(text)})"

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._literal("".join(map(str, group)))

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        value = node.as_const(frame.eval_ctx)
        if self._plain or isinstance(value, float):
            if isinstance(value, str):  # what a template looks for is a marker as much as what it prints
                self.environment.number(value)
            super().visit_Const(node, frame)
        else:
            self.write(self._constant(value))

    def _constant(self, value: Any) -> str:
        """Code of a constant with its texts traced; lists and mappings of constants are constants too."""
        if isinstance(value, str):
            return self._literal(value)
        if isinstance(value, (list, tuple)):
            inner = "".join(f"{self._constant(item)}, " for item in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if isinstance(value, dict):
            return "{" + "".join(f"{self._constant(k)}: {self._constant(v)}, " for k, v in value.items()) + "}"
        return repr(value)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(self._literal(node.data))

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        if isinstance(node.node, nodes.EnvironmentAttribute) and node.node.name in _HOOKS:  # not the template's call
            self.write(f"environment.{node.node.name}(")
            for argument in node.args:
                self.visit(argument, frame)
            self.write(")")
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self._plain += 1
        super().visit_Compare(node, frame)
        self._plain -= 1

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            self.write("environment.getitem(")
            self.visit(node.node, frame)
            self.write(f", {node.arg.value!r})")
        else:
            super().visit_Getitem(node, frame)

    def visit_Add(self, node: nodes.Add, frame: Frame) -> None:  # type: ignore[override]  # made by a function there
        terms, first = [node.right], node.left
        while isinstance(first, nodes.Add):
            terms.append(first.right)
            first = first.left
        self.write("environment.add((")
        for term in (first, *reversed(terms)):
            self.visit(term, frame)
            self.write(", ")
        self.write("))")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for arg in node.nodes:
            self.write("environment.output(")
            self.visit(arg, frame)
            self.write("), ")
        self.write("))")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("environment.output(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of ``apply_chat_template``, with tracing. One per template: it holds the literals."""

    code_generator_class = _Generator
    concat = staticmethod(functools.partial(join, ""))

    def __init__(self, like: ImmutableSandboxedEnvironment) -> None:
        super().__init__(
            trim_blocks=like.trim_blocks,
            lstrip_blocks=like.lstrip_blocks,
            extensions=[type(extension) for extension in like.extensions.values()],
        )
        self.literals: list[str] = []
        self._made: dict[tuple[int, int | None], Traced] = {}
        self.filters.update(like.filters)
        self.globals.update(like.globals)
        self.tests.update(like.tests)
        self.filters.update(
            tojson=to_json,
            join=functools.partial(_join, self),
            string=printed,
            safe=traced,
            title=lambda value: printed(value).title(),
            indent=_indent,
        )
        now: Any = like.globals["strftime_now"]
        self.globals["strftime_now"] = lambda form: Traced.of(now(str.__str__(form)), DATE)

    # --------------------------------------------------------------------------------- called by the compiled template

    def number(self, text: str) -> int:
        """A number for a literal of the template; equal texts in two places have two."""
        self.literals.append(text)
        return len(self.literals) - 1

    def literal(self, number: int) -> Traced:
        message = _TURN.get().message
        key = (number, message)
        if key not in self._made:
            if len(self._made) > 100_000:
                self._made.clear()
            self._made[key] = Traced.of(self.literals[number], Source(Kind.TEMPLATE, message, number))
        return self._made[key]

    def getattr(self, obj: Any, attribute: str) -> Any:
        if (
            isinstance(obj, LoopContext) and attribute in _OF_LOOPS
        ):  # what templates ask for most; safe, as it is jinja's
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def add(self, terms: tuple[Any, ...]) -> Any:
        """The sum of terms: of strings, in one go."""
        if all(isinstance(term, str) for term in terms):
            return join("", terms)
        return functools.reduce(operator.add, terms)

    def output(self, value: Any) -> Traced:
        if not isinstance(value, str) and any(source.kind is Kind.CONTENT for source in sources_in(value)):
            raise TemplateError("a message is printed as a data structure, not as text")
        text, message = printed(value), _TURN.get().message
        if message is None:
            return text
        return Traced(text, [(length, _in_round(source, message)) for length, source in text._runs])

    def enter_loop(self) -> str:
        turn = _TURN.get()
        turn.loops.append((turn.message, False))
        return ""

    def enter_turn(self, item: Any) -> str:
        """Note the message of a loop's round, where the loop is over messages or over their numbers."""
        turn = _TURN.get()
        before, _ = turn.loops[-1]
        message = _index_of(item)
        if message is None and before is None and isinstance(item, int):
            message = item
        turn.message = before if message is None else message
        turn.loops[-1] = (before, _index_of(item) is not None)
        return ""

    def assigned(self, value: Any) -> str:
        """Note a message that a loop over something else sets: ``{% set message = messages[i] %}``."""
        turn = _TURN.get()
        if isinstance(value, _Message) and turn.loops and not any(own for _, own in turn.loops):
            turn.message = value._index
        return ""

    def leave_loop(self) -> str:
        turn = _TURN.get()
        turn.message, _ = turn.loops.pop()
        return ""

    # ------------------------------------------------------------------------------------------------------ compiling

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self._note_turns(tree)
        return tree

    def _note_turns(self, node: nodes.Node) -> None:
        """Put calls around loops and behind assignments, so that it is known which message is being printed."""
        for field in node.fields:
            value = getattr(node, field)
            if isinstance(value, nodes.Node):
                self._note_turns(value)
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, nodes.Node):
                        self._note_turns(item)
                if any(isinstance(item, (nodes.For, nodes.Assign)) for item in value):
                    setattr(node, field, [new for item in value for new in self._noted(item)])

    def _noted(self, node: nodes.Node) -> list[nodes.Node]:
        if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
            return [node, _call("assigned", node.target.name, node.lineno)]
        if isinstance(node, nodes.For):
            if isinstance(node.target, nodes.Name):
                node.body.insert(0, _call("enter_turn", node.target.name, node.lineno))
            return [_call("enter_loop", None, node.lineno), node, _call("leave_loop", None, node.lineno)]
        return [node]


def _in_round(source: Source, message: int) -> Source:
    """The source of something that is printed in the round of a message."""
    if source.kind is Kind.TEMPLATE and source.message is None:
        return source._replace(message=message)
    if source.kind is Kind.CONTENT and source.message == message:
        return source._replace(name="round")
    return source


def _call(method: str, name: str | None, lineno: int) -> nodes.Node:
    arguments = [] if name is None else [nodes.Name(name, "load")]
    call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
    return nodes.ExprStmt(call).set_lineno(lineno, override=True)


def _index_of(item: Any) -> int | None:
    """The message that a loop's item is, or that a new mapping was made of."""
    if isinstance(item, _Message):
        return item._index
    if isinstance(item, Mapping):
        found = {source.message for source in sources_in(item) if source.kind is Kind.CONTENT}
        roles = [s.message for _, s in runs_of(item["role"]) if s.name == "role"] if "role" in item else []
        found.update(roles if not found else ())
        if len(found) == 1:
            return found.pop()
    return None


def _join(environment: _Environment, value: Iterable[Any], d: str = "", attribute: Any = None) -> Traced:
    """The filter ``join``."""
    if attribute is not None:
        value = [environment.getitem(item, attribute) for item in value]
    return join(d, [environment.output(item) for item in value])


def _indent(value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> Traced:
    """The filter ``indent``."""
    step = printed(width) if isinstance(width, str) else Traced.of(" " * width, PRINTED)
    lines = (traced(value) + Traced.of("\n", PRINTED)).splitlines(keepends=blank)
    if blank:
        out = join("", [line if not i else step + line for i, line in enumerate(lines)])[:-1]
    else:
        out = join(Traced.of("\n", PRINTED), [step + line if i and line else line for i, line in enumerate(lines)])
    return step + out if first else out


class Renderer:
    """A chat template, compiled with tracing.

    Args:
        template: A Jinja chat template.

    Attributes:
        literals: The texts that the template can print or looks for, in the order in which it has them.
    """

    def __init__(self, template: str) -> None:
        try:
            self._plain = _compile_jinja_template(template)
            self._environment = _Environment(self._plain.environment)
            self._traced = self._environment.from_string(template)
        except TemplateError as error:
            raise ValueError(
                f"`chat_template`: expected a Jinja template, got one that does not compile: {error}. Pass another one."
            ) from error
        self.literals = self._environment.literals

    def render(
        self,
        messages: Sequence[_Message],
        variables: Mapping[str, Any],
        *,
        add_generation_prompt: bool = False,
    ) -> Traced:
        """The conversation as printed by the template.

        Args:
            messages: Messages with traced contents.
            variables: What the template sees besides the messages, traced (:func:`trace_variables`).
            add_generation_prompt: As in ``apply_chat_template``.

        Raises:
            RefusedError: The template raised, or it does something that cannot be traced.
        """
        given = {"tools": None, "documents": None, **variables, "add_generation_prompt": add_generation_prompt}
        token = _TURN.set(_Turn())
        try:
            text = cast(Traced, self._traced.render(messages=list(messages), **given))
            expected = self._plain.render(messages=_plain(list(messages)), **_plain(given))
        except (TemplateError, TypeError, LookupError, AttributeError) as error:
            raise RefusedError(f"it says {str(error)!r}") from error
        finally:
            _TURN.reset(token)
        if str.__str__(text) != expected or any(n and s.kind is Kind.UNKNOWN for n, s in text._runs):
            raise RefusedError("it changes a text in a way that rolesafe cannot follow to its end")
        return text


@functools.lru_cache(maxsize=256)
def renderer(template: str) -> Renderer:
    """The :class:`Renderer` of a template, compiled once."""
    return Renderer(template)


def trace_variables(special_tokens: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The template's variables: special tokens are the template's text, the caller's texts are his own.

    Functions among the ``tools`` become their JSON schemas, as in ``apply_chat_template``.
    """
    known = {name: wrap(value, Source(Kind.TEMPLATE, name=name)) for name, value in special_tokens.items()}
    for name, value in given.items():
        if name in special_tokens and value == special_tokens[name]:
            continue
        if name == "tools" and value is not None:
            value = [tool if isinstance(tool, Mapping) else get_json_schema(tool) for tool in value]
        known[name] = wrap(value, Source(Kind.VARIABLE, name=name))
    return known


def _plain(value: Any) -> Any:
    """A copy of data with plain strings."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (dict, Mapping)):  # dict first: asking an abstract class takes longer
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value
