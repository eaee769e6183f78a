"""A chat template as transformers renders it, with the text that each message gave marked.

A template comes from whoever made the tokenizer, so it is compiled in transformers' own sandbox. Marks are put into its syntax
tree: one where a loop takes up a message, one behind the loop, two around a {% generation %} block. They begin with a
noncharacter of Unicode, which is not for interchange, and are cut out of the text again:

    {% for message in messages %}{{ '<|im_start|>' + message.role ... }}{% endfor %}
    {% for message in messages %}{{ message | mark(0) }}{{ '<|im_start|>' + message.role ... }}{% endfor %}{{ END }}
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from talaria.common.errors import DataError
from talaria.tokenization.rendered.sandbox import compiled_by_transformers, quick_sandbox

if TYPE_CHECKING:
    import jinja2

RESERVED = "".join(map(chr, range(0xFDD0, 0xFDD2)))
MARK, BREAK = list(RESERVED)
"""MARK: begins a mark, four characters: MARK, what it says, the number of the loop and that of the message, each as a character.
BREAK: put into text from the data that looks like a control token, so that it is none."""
BEGIN, END, OPEN, CLOSE = "0123"
"""What a mark says: this loop comes to this message; it is over; {% generation %} begins; it ends."""
_NUMBERS = 0x10000
"""The character of this code stands for 0: those from there on are no halves of surrogate pairs."""
_ORDER = "_message_order"

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Any] | None


class Region(NamedTuple):
    """Text [start, stop) that the template wrote while its loop was at this message."""

    message: int
    start: int
    stop: int


class Rendered(NamedTuple):
    text: str
    regions: tuple[Region, ...]
    generated: tuple[tuple[int, int], ...]
    """Text [start, stop) of each {% generation %} block."""


class TemplateError(ValueError):
    """The template raised an error for a conversation: roles that do not alternate, a role that it does not know."""


class ChatTemplate:
    """A template with the special tokens that it may name. Threads can share it."""

    def __init__(self, source: str, variables: Mapping[str, Any], day: datetime.date, where: str) -> None:
        """`variables`: bos_token and the like. `day`: what the template takes for today.

        Raises DataError where it does not compile.
        """
        import jinja2

        self.source, self.where = source, where
        self.asks_date = False
        """Whether the template has asked for today's date."""
        self._variables = dict(variables)
        try:
            plain = compiled_by_transformers(source)
            environment = plain.environment
            environment.globals["strftime_now"] = self._strftime_on(day)
            environment.filters["mark"] = mark_filter()
            self._plain: jinja2.Template = plain
            self._marked: jinja2.Template = quick_sandbox(environment).from_string(with_marks(environment.parse(source)))
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"{where}: not a chat template that Jinja can read: {error}.") from error

    def _strftime_on(self, day: datetime.date) -> Any:
        def strftime_now(form: str) -> str:
            self.asks_date = True
            return day.strftime(form)

        return strftime_now

    def render(self, messages: Messages, tools: Tools = None) -> Rendered:
        """The conversation, with its regions. Raises TemplateError where the template does not take it."""
        order = {id(message): number for number, message in enumerate(messages)}
        return without_marks(self._run(self._marked, messages, tools, False, order))

    def prompt_after(self, messages: Messages, tools: Tools = None) -> str:
        """What the template writes behind these messages for the model to go on from: `<|im_start|>assistant\\n`.

        A template may end a conversation without it with something else (Phi-3.5: the end of the text). Raises TemplateError.
        """
        rendered = self.render(messages, tools)
        end = max((region.stop for region in rendered.regions), default=len(rendered.text))
        asked = self.text(messages, tools, add_generation_prompt=True)
        if asked[:end] != rendered.text[:end]:
            raise TemplateError("the generation prompt changes the text before it")
        return asked[end:]

    def text(self, messages: Messages, tools: Tools = None, add_generation_prompt: bool = False) -> str:
        """The conversation as transformers' apply_chat_template(tokenize=False) gives it. Raises TemplateError as `render`."""
        return self._run(self._plain, messages, tools, add_generation_prompt, {})

    def _run(
        self, template: jinja2.Template, messages: Messages, tools: Tools, add_generation_prompt: bool, order: dict[int, int]
    ) -> str:
        import jinja2

        given = {**self._variables, "messages": messages, "tools": tools, "documents": None, _ORDER: order}
        try:
            return template.render(given, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise TemplateError(str(error) or type(error).__name__) from error


def mark_of(says: str, loop: int = 0) -> str:
    """A mark of message 0 as text."""
    return f"{MARK}{says}{chr(_NUMBERS + loop)}{chr(_NUMBERS)}"


def mark_filter() -> Any:
    """The filter that writes BEGIN for an item which is a message, nothing for any other."""
    import jinja2

    @jinja2.pass_context
    def mark(context: jinja2.runtime.Context, item: Any, begun: str) -> str:
        number = context.parent[_ORDER].get(id(item))
        return "" if number is None else begun + chr(_NUMBERS + number)

    return mark


def with_marks(tree: Any) -> Any:
    """The syntax tree with a mark for each message that a loop takes up, and around what {% generation %} encloses."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    loops = itertools.count()
    writing = (nodes.Output, nodes.CallBlock, nodes.FilterBlock, nodes.Include, nodes.Block)

    def output(expression: Any) -> Any:
        return nodes.Output([expression])

    class Marker(NodeTransformer):
        def visit_For(self, node: Any) -> Any:
            writes = any(node.find_all(writing))
            self.generic_visit(node)
            if not writes:  # the search for the last question, in Qwen3's
                return node
            loop = next(loops)
            names = [name.name for name in [node.target, *node.target.find_all(nodes.Name)] if isinstance(name, nodes.Name)]
            number = nodes.Const(mark_of(BEGIN, loop)[:-1])
            marks = [output(nodes.Filter(nodes.Name(name, "load"), "mark", [number], [], None, None)) for name in names]
            node.body = [*marks, *node.body]
            return [node, output(nodes.Const(mark_of(END, loop)))]

        def visit_CallBlock(self, node: Any) -> Any:
            self.generic_visit(node)
            called = node.call.node
            if isinstance(called, nodes.ExtensionAttribute) and called.name == "_generation_support":
                node.body = [output(nodes.Const(mark_of(OPEN))), *node.body, output(nodes.Const(mark_of(CLOSE)))]
            return node

    environment = tree.environment
    return Marker().visit(tree).set_environment(environment)


def without_marks(marked: str) -> Rendered:
    """The text, and what its marks said. A loop inside a message's turn of the loop, over whatever, ends no region.

    Raises TemplateError where a mark was cut.
    """
    regions: list[Region] = []
    generated: list[tuple[int, int]] = []
    start = opened = message = 0
    running: str | None = None  # the loop over messages
    text, *parts = marked.split(MARK)
    pieces, at = [text], len(text)
    for part in parts:
        if len(part) < 3:
            raise TemplateError("the template cuts its own text in the middle of what a loop wrote")
        says, loop = part[0], part[1]
        if says == OPEN:
            opened = at
        elif says == CLOSE:
            generated.append((opened, at))
        elif loop == running or (running is None and says == BEGIN):
            if running is not None and at > start:
                regions.append(Region(message, start, at))
            running = loop if says == BEGIN else None
            message, start = ord(part[2]) - _NUMBERS, at
        pieces.append(part[3:])
        at += len(part) - 3
    return Rendered("".join(pieces), tuple(regions), tuple(generated))
