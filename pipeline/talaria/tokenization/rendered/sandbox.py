"""transformers' sandbox for chat templates, quicker for what a conversation is made of.

Jinja's sandbox asks a dozen questions each time a template reads `message.role`, half of the time that a template takes. For the
plain types below the answers are known, and are the same; everything else goes the sandbox's own way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from jinja2.compiler import CodeGenerator

_OF_DICT = frozenset(dir(dict))
_OF_STR = frozenset(("strip", "lstrip", "rstrip", "split", "startswith", "endswith", "replace", "lower", "upper", "title"))
"""Methods of a text that return text, lists of it or booleans; `format` and `format_map` are not among them."""
_OF_LOOP = frozenset(("first", "last", "index", "index0", "revindex", "revindex0", "length", "previtem", "nextitem"))
REMEMBERED = 4096
_PLAIN = frozenset((str, int, float, bool, type(None), dict, list))


def compiled_by_transformers(source: str) -> jinja2.Template:
    """The template in the sandbox that apply_chat_template uses: a private function, and the only one taken from there."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template: jinja2.Template = _compile_jinja_template(source)
    return template


def quick_sandbox(environment: jinja2.Environment) -> jinja2.Environment:
    """The same environment (filters, globals, extensions) with the short way for plain types."""
    from jinja2.runtime import LoopContext
    from jinja2.utils import Namespace

    class QuickSandbox(type(environment)):  # type: ignore[misc]
        def getattr(self, obj: Any, attribute: str) -> Any:
            kind = type(obj)
            if kind is dict and attribute not in _OF_DICT:
                return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
            if kind is str and attribute in _OF_STR:
                return getattr(obj, attribute)
            if kind is LoopContext and attribute in _OF_LOOP:
                return getattr(obj, attribute)
            if issubclass(kind, Namespace) and not attribute.startswith("_"):
                value = getattr(obj, attribute, self)
                if type(value) in _PLAIN:
                    return value
            return super().getattr(obj, attribute)

    quick: jinja2.Environment = object.__new__(QuickSandbox)
    quick.__dict__.update(environment.__dict__)  # as Environment.overlay does
    quick.code_generator_class = inlining(environment.code_generator_class)
    quick.filters = environment.filters | {"tojson": remembering(environment.filters["tojson"])}
    return quick


def remembering(tojson: Callable[..., str]) -> Callable[..., str]:
    """The filter, which remembers the text of objects: rows share their tools (conversation.py), and no template changes any."""
    known: dict[int, tuple[Any, str]] = {}

    def quick(value: Any, *options: Any, **named: Any) -> str:
        if options or named or type(value) is not dict:
            return tojson(value, *options, **named)
        held, text = known.get(id(value), (None, ""))
        if held is not value:
            text = tojson(value)
            if len(known) >= REMEMBERED:
                known.clear()
            known[id(value)] = (value, text)  # holds the object, so that no other gets its id
        return text

    return quick


def inlining(generator: type[CodeGenerator]) -> type[CodeGenerator]:
    """The generator of a template's Python code with the short ways written into that code, where they cost no call.

    `message.role` becomes `(_t['role'] if type(_t := message) is dict and 'role' in _t else environment.getattr(_t, 'role'))`.
    """

    from jinja2 import nodes

    class Inlining(generator):  # type: ignore[misc,valid-type]
        def visit_Getattr(self, node: Any, frame: Any) -> None:
            if node.attr in _OF_LOOP and isinstance(node.node, nodes.Name) and node.node.name == "loop":
                self.write(f"(_t.{node.attr} if type(_t := ")
                self.visit(node.node, frame)
                self.write(f") is LoopContext else environment.getattr(_t, {node.attr!r}))")
            elif node.attr in _OF_DICT:
                super().visit_Getattr(node, frame)
            else:
                self._read(node.node, node.attr, "getattr", frame)

        def visit_Getitem(self, node: Any, frame: Any) -> None:
            if isinstance(node.arg, nodes.Const) and type(node.arg.value) is str:
                self._read(node.node, node.arg.value, "getitem", frame)
            else:
                super().visit_Getitem(node, frame)

        def _read(self, owner: Any, name: str, otherwise: str, frame: Any) -> None:
            self.write(f"(_t[{name!r}] if type(_t := ")
            self.visit(owner, frame)
            self.write(f") is dict and {name!r} in _t else environment.{otherwise}(_t, {name!r}))")

        def visit_Call(self, node: Any, frame: Any, forward_caller: bool = False) -> None:
            method = node.node
            given_otherwise = node.kwargs or node.dyn_args or node.dyn_kwargs or forward_caller
            if given_otherwise or not isinstance(method, nodes.Getattr) or method.attr not in _OF_STR:
                super().visit_Call(node, frame, forward_caller=forward_caller)
                return
            self.write(f"(_t.{method.attr} if type(_t := ")
            self.visit(method.node, frame)
            self.write(f") is str else partial(environment.call, context, environment.getattr(_t, {method.attr!r})))(")
            for argument in node.args:
                self.visit(argument, frame)
                self.write(", ")
            self.write(")")

        def visit_Template(self, node: Any, frame: Any = None) -> None:
            self.writeline("from functools import partial")
            super().visit_Template(node, frame)

    return Inlining
