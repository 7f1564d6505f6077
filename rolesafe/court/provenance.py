"""Articles on the origin of text: runs copied from other messages, and tool calls nobody privileged asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from rolesafe.arguments import is_integer
from rolesafe.court.articles import Article, Context, PhraseSet, SpelledArticle, expect, expect_texts
from rolesafe.court.normalise import INVALID, Normalisation
from rolesafe.roles.role import role_id


@dataclass(frozen=True, kw_only=True)
class NoCopy(SpelledArticle):
    """Forbid runs of more than n tokens copied from messages of some roles.

    The text of each n + 1 consecutive tokens of such a message is forbidden, however the reply splits it into tokens.

    Args:
        roles: Roles of the messages.
        longest: Largest number n of copied tokens.
        within: Two markers: only text between them counts, such as the arguments of a tool call; None: all text.
    """

    kind: ClassVar[str] = "no_copy"
    about: ClassVar[str] = "runs of tokens copied from messages of some roles"

    roles: tuple[str, ...] = ("tool",)
    longest: int = 8
    within: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_texts(self.roles, "roles")
        expect(is_integer(self.longest, 1), "longest", "a number of tokens >= 1", self.longest)
        if self.within is not None:
            expect_texts(self.within, "within")
            expect(len(self.within) == 2, "within", "two markers or None", self.within)

    def compile(self, context: Context) -> Iterator[PhraseSet]:
        """Yield the texts of n + 1 consecutive tokens of each message of the roles.

        Raises:
            ValueError: A role is not declared.
        """
        for i, role in enumerate(self.roles):
            role_id(role, context.roles, argument=f"roles[{i}]")
        wanted = {role.lower() for role in self.roles}
        normal = self.normalisation()
        found: dict[str, None] = {}
        for message in context.messages:
            if message.role not in wanted:
                continue
            ids = list(context.encode(message.content))
            for k in range(len(ids) - self.longest):
                data = b"".join(context.vocabulary.pieces[i] or b"" for i in ids[k : k + self.longest + 1])
                text = data.decode("utf-8", "ignore")  # a character may begin in the token before
                form = normal.phrase(text)
                if form and "\0" not in form and INVALID not in form:
                    found[form] = None
        yield PhraseSet(self.name, normal, tuple(found), self.within)


@dataclass(frozen=True, kw_only=True)
class ToolCalls(Article):
    """Forbid calls of tools that no message of some roles asks for.

    A message asks for a tool if it holds its name. A call is the text `before`, the name, and the text `after`, with
    white space between them ignored; an escape in the name counts as a call. Only the tools in `names` are known; an
    application refuses any other name.

    Args:
        names: Names of all tools.
        roles: Roles that may ask for a tool.
        before: Text in front of the name in a call.
        after: Text behind the name in a call.
    """

    kind: ClassVar[str] = "tool_calls"
    about: ClassVar[str] = "calls of tools that only other roles ask for"

    names: tuple[str, ...] = ()
    roles: tuple[str, ...] = ("system", "developer", "user")
    before: str = '"name": "'
    after: str = '"'

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_texts(self.names, "names")
        expect_texts(self.roles, "roles")
        for key in ("before", "after"):
            expect(isinstance(getattr(self, key), str), key, "a text", getattr(self, key))

    def compile(self, context: Context) -> Iterator[PhraseSet]:
        """Yield the calls of the tools that no message of the roles names.

        Raises:
            ValueError: A role is not declared.
        """
        for i, role in enumerate(self.roles):
            role_id(role, context.roles, argument=f"roles[{i}]")
        wanted = {role.lower() for role in self.roles}
        asked = "\n".join(message.content for message in context.messages if message.role in wanted)
        normal = Normalisation(case=False, spaces="ignore")
        calls = []
        for name in self.names:
            if name not in asked:
                calls.append(f"{self.before}{name}{self.after}")
                # JSON may spell a character of the name as an escape
                calls += [f"{self.before}{name[:k]}\\" for k in range(len(name))]
        yield PhraseSet(self.name, normal, tuple(dict.fromkeys(normal.phrase(call) for call in calls)))
