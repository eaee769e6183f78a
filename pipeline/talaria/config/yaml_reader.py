"""Read YAML 1.2 strictly: what two readers could take for two things is refused, with its line."""

from __future__ import annotations

from typing import Any

from talaria.common.errors import ConfigError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 20
"""Levels of nesting; the settings have three. The reader below recurses, and so do validation and error messages."""


def read_yaml(text: str, origin: str) -> Any:
    """Return the value of one YAML 1.2 document: dicts, lists, strings, finite numbers, booleans and None.

    `yes`, `12:30:45` and `2024-02-30` are strings, `1e-5` is a number. Raises ConfigError, one sentence with `origin` and the
    line, for what does not parse, for a key that is given twice, and for what a configuration has no use for: aliases (which
    can stand for a billion values), tags, several documents, and nesting beyond MAX_DEPTH.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError  # here, since 0.1 s is much for a command without a file

    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{origin}: has {len(text):,} characters; a configuration has at most {MAX_CHARACTERS:,}.")
    try:
        _refuse_what_has_no_use(text, origin)
        return _reader().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{origin}: not valid YAML{_at(mark)}: {_on_one_line(error.problem)}.") from None
    except (YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{origin}: not valid YAML: {_on_one_line(str(error))}.") from None


def _reader() -> Any:
    """Return a reader of ruamel.yaml whose dates stay the text that was written."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import ConstructorError, SafeConstructor

    class Constructor(SafeConstructor):
        def whole_number(self, node: Any) -> int:
            try:
                return int(self.construct_yaml_int(node))
            except ValueError:  # 0x_, or more digits than Python reads
                raise ConstructorError(problem=f"{node.value[:20]} is no whole number", problem_mark=node.start_mark) from None

        def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
            if key not in mapping:
                return True
            first = next(other.start_mark.line + 1 for other, _ in node.value if other.value == key_node.value)
            problem = f"the key {key} is there twice, first at line {first}; write what belongs to it once, in one place"
            raise ConstructorError(problem=problem, problem_mark=key_node.start_mark)

    Constructor.add_constructor("tag:yaml.org,2002:int", Constructor.whole_number)
    Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = Constructor
    return reader


def _refuse_what_has_no_use(text: str, origin: str) -> None:
    """Look at the document's events, which are made one by one and not by recursion. Raises ConfigError."""
    from ruamel.yaml import events

    depth = 0
    for event in _reader().parse(text):
        if isinstance(event, events.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{origin}: anchors and aliases (&, *) are not read{_at(event.start_mark)}; write the value out.")
        if getattr(event, "tag", None) and not isinstance(event, events.DocumentStartEvent):
            raise ConfigError(f"{origin}: tags (!) are not read{_at(event.start_mark)}; write the value as it is.")
        if getattr(event, "version", None) not in (None, (1, 2)):
            raise ConfigError(f"{origin}: is read as YAML 1.2; remove the line %YAML.")
        depth += isinstance(event, events.CollectionStartEvent) - isinstance(event, events.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{origin}: is nested more than {MAX_DEPTH} levels deep{_at(event.start_mark)}.")


def _at(mark: Any) -> str:
    return f" at line {mark.line + 1}" if mark else ""


def _on_one_line(text: str | None) -> str:
    return " ".join((text or "it does not parse").split()).rstrip(".")[:200]
