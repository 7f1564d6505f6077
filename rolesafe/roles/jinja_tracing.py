"""Jinja environment that traces the source of every printed character.

The code generator wraps literals and outputs, and calls hooks around loops, so that every printed run has the message
of its round.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rolesafe.roles.traced import PRINTED, Kind, Source, Traced, join, printed, runs_of, sources_in, traced
from rolesafe.roles.traced_data import to_json

DATE = Source(Kind.TEMPLATE, name="strftime_now")


class Message(dict[str, Any]):
    """Message in the form that the template gets, with its index in the conversation."""

    _index: int


class Turn:
    """State of one rendering: the message that is being printed."""

    def __init__(self) -> None:
        self.message: int | None = None
        self.loops: list[tuple[int | None, bool]] = []  # the message before the loop, and whether the loop sets one


current_turn: ContextVar[Turn] = ContextVar("rolesafe_turn")


_OF_LOOPS = frozenset({"first", "last", "index", "index0", "length"})
_HOOKS = frozenset({"enter_loop", "enter_turn", "assigned", "leave_loop"})


class _Generator(CodeGenerator):
    """Code generator that traces all literals that may be printed."""

    environment: TracingEnvironment
    _plain = 0  # > 0 inside a comparison or a subscript, where nothing is printed

    def _literal(self, text: str) -> str:
        return f"environment.literal({self.environment.number(text)})"

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._literal("".join(map(str, group)))

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        value = node.as_const(frame.eval_ctx)
        if self._plain or isinstance(value, float):
            if isinstance(value, str):  # markers that a template only looks for are literals too
                self.environment.number(value)
            super().visit_Const(node, frame)
        else:
            self.write(self._constant(value))

    def _constant(self, value: Any) -> str:
        """Return the code of a constant with its texts traced, also inside lists and mappings."""
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


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """The environment of ``apply_chat_template`` with tracing. One per template: it holds the literals."""

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
        """Return a new number for a literal of the template; equal texts in two places get two."""
        self.literals.append(text)
        return len(self.literals) - 1

    def literal(self, number: int) -> Traced:
        message = current_turn.get().message
        key = (number, message)
        if key not in self._made:
            if len(self._made) > 100_000:
                self._made.clear()
            self._made[key] = Traced.of(self.literals[number], Source(Kind.TEMPLATE, message, number))
        return self._made[key]

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in _OF_LOOPS:  # the most frequent lookups; safe without sandbox
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def add(self, terms: tuple[Any, ...]) -> Any:
        """Return the sum of terms; strings are joined in one step."""
        if all(isinstance(term, str) for term in terms):
            return join("", terms)
        return functools.reduce(operator.add, terms)

    def output(self, value: Any) -> Traced:
        if not isinstance(value, str) and any(source.kind is Kind.CONTENT for source in sources_in(value)):
            raise TemplateError("a message is printed as a data structure, not as text")
        text, message = printed(value), current_turn.get().message
        if message is None:
            return text
        return Traced(text, [(length, _in_round(source, message)) for length, source in text._runs])

    def enter_loop(self) -> str:
        turn = current_turn.get()
        turn.loops.append((turn.message, False))
        return ""

    def enter_turn(self, item: Any) -> str:
        """Record the message of a loop's round, where the loop is over messages or their indices."""
        turn = current_turn.get()
        before, _ = turn.loops[-1]
        message = _index_of(item)
        if message is None and before is None and isinstance(item, int):
            message = item
        turn.message = before if message is None else message
        turn.loops[-1] = (before, _index_of(item) is not None)
        return ""

    def assigned(self, value: Any) -> str:
        """Record a message that another loop sets: ``{% set message = messages[i] %}``."""
        turn = current_turn.get()
        if isinstance(value, Message) and turn.loops and not any(own for _, own in turn.loops):
            turn.message = value._index
        return ""

    def leave_loop(self) -> str:
        turn = current_turn.get()
        turn.message, _ = turn.loops.pop()
        return ""

    # ------------------------------------------------------------------------------------------------------ compiling

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self._note_turns(tree)
        return tree

    def _note_turns(self, node: nodes.Node) -> None:
        """Insert calls around loops and after assignments that record the current message."""
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
    """Return `source` for a run that is printed in the round of `message`."""
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
    """Return the index of the message that a loop's item is, or that a mapping was made from; None otherwise."""
    if isinstance(item, Message):
        return item._index
    if isinstance(item, Mapping):
        found = {source.message for source in sources_in(item) if source.kind is Kind.CONTENT}
        roles = [s.message for _, s in runs_of(item["role"]) if s.name == "role"] if "role" in item else []
        found.update(roles if not found else ())
        if len(found) == 1:
            return found.pop()
    return None


def _join(environment: TracingEnvironment, value: Iterable[Any], d: str = "", attribute: Any = None) -> Traced:
    """Filter ``join``."""
    if attribute is not None:
        value = [environment.getitem(item, attribute) for item in value]
    return join(d, [environment.output(item) for item in value])


def _indent(value: str, width: int | str = 4, first: bool = False, blank: bool = False) -> Traced:
    """Filter ``indent``."""
    step = printed(width) if isinstance(width, str) else Traced.of(" " * width, PRINTED)
    lines = (traced(value) + Traced.of("\n", PRINTED)).splitlines(keepends=blank)
    if blank:
        out = join("", [line if not i else step + line for i, line in enumerate(lines)])[:-1]
    else:
        out = join(Traced.of("\n", PRINTED), [step + line if i and line else line for i, line in enumerate(lines)])
    return step + out if first else out
