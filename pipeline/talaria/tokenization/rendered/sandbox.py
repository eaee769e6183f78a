"""transformers' sandbox for chat templates, quicker for what a conversation is made of.

Jinja's sandbox asks a dozen questions each time a template reads `message.role`, half of the time that a template takes. For the
plain types below the answers are known, and are the same; everything else goes the sandbox's own way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

_OF_DICT = frozenset(dir(dict))
_OF_STR = frozenset(("strip", "lstrip", "rstrip", "split", "startswith", "endswith", "replace", "lower", "upper", "title"))
"""Methods of a text that return text, lists of it or booleans; `format` and `format_map` are not among them."""
_PLAIN = frozenset((str, int, float, bool, type(None), dict, list))


def compiled_by_transformers(source: str) -> jinja2.Template:
    """The template in the sandbox that apply_chat_template uses: a private function, and the only one taken from there."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template: jinja2.Template = _compile_jinja_template(source)
    return template


def quick_sandbox(environment: jinja2.Environment) -> jinja2.Environment:
    """The same environment (filters, globals, extensions) with the short way for plain types."""
    from jinja2.utils import Namespace

    class QuickSandbox(type(environment)):  # type: ignore[misc]
        def getattr(self, obj: Any, attribute: str) -> Any:
            kind = type(obj)
            if kind is dict and attribute not in _OF_DICT:
                try:
                    return obj[attribute]
                except KeyError:
                    return self.undefined(obj=obj, name=attribute)
            if kind is str and attribute in _OF_STR:
                return getattr(obj, attribute)
            if isinstance(obj, Namespace) and not attribute.startswith("_"):
                value = getattr(obj, attribute, self)
                if type(value) in _PLAIN:
                    return value
            return super().getattr(obj, attribute)

    quick: jinja2.Environment = object.__new__(QuickSandbox)
    quick.__dict__.update(environment.__dict__)  # as Environment.overlay does
    return quick
