"""Tools and tool calls in the forms that data sets have, as JSON text in the form that chat templates take (OpenAI's)."""

from __future__ import annotations

from typing import Any

from talaria.data import json_text
from talaria.data.conversation.drop_reasons import BAD_TOOL_CALL, BAD_TOOLS, Unusable, kind_of


def tools_text(tools: Any) -> str | None:
    """A row's tools as JSON text of a list, or None where it has none.

    Accepts a list or its JSON text; each tool as {"type": "function", "function": {"name": ...}} or the function alone, which is
    wrapped, since a server hands tools to the template so, its `input_schema` (Anthropic's) as `parameters`. Raises Unusable.
    """
    value = _parsed(tools, BAD_TOOLS, "tools")
    if value is None or value in ([], ""):
        return None
    if not isinstance(value, list):
        raise Unusable(BAD_TOOLS, f"tools is {kind_of(value)}, not a list")
    return json_text.dump([_tool(_parsed(tool, BAD_TOOLS, f"tool {n}"), n) for n, tool in enumerate(value)])


def _tool(tool: Any, number: int) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise Unusable(BAD_TOOLS, f"tool {number} is {kind_of(tool)}, not an object")
    wrapped = isinstance(tool.get("function"), dict)
    if not isinstance((tool["function"] if wrapped else tool).get("name"), str):
        raise Unusable(BAD_TOOLS, f"tool {number} has no function with a name")
    if wrapped:
        return {"type": "function", **tool}
    renamed = "input_schema" if "parameters" not in tool else None
    return {"type": "function", "function": {"parameters" if name == renamed else name: value for name, value in tool.items()}}


def calls_text(calls: Any) -> str | None:
    """An answer's tool calls as JSON text of a list of {"type": "function", "function": {"name", "arguments": object}}.

    Accepts a list, one call, or the JSON text of either; a call with or without `function` around it, arguments as an object or
    as JSON text of one. None where there are none. Raises Unusable.
    """
    value = _parsed(calls, BAD_TOOL_CALL, "the tool call")
    if value is None or value in ([], ""):
        return None
    listed = value if isinstance(value, list) else [value]
    return json_text.dump([_call(_parsed(call, BAD_TOOL_CALL, "a tool call")) for call in listed])


def _call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise Unusable(BAD_TOOL_CALL, f"a tool call is {kind_of(call)}, not an object")
    wrapped = isinstance(call.get("function"), dict)
    function = call["function"] if wrapped else {key: value for key, value in call.items() if key not in ("id", "type")}
    name = function.get("name")
    if not isinstance(name, str):
        raise Unusable(BAD_TOOL_CALL, "a tool call has no function with a name")
    arguments = _arguments(function.get("arguments", function.get("parameters")), name)
    lost = function.keys() - {"name", "arguments", "parameters"}
    if lost:
        raise Unusable(BAD_TOOL_CALL, f"the call of {name!r} has the unknown field {min(lost)!r} beside name and arguments")
    outer = {key: value for key, value in call.items() if key not in ("function", "type")} if wrapped else {}
    if not wrapped and "id" in call:
        outer = {"id": call["id"]}
    return {**outer, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(arguments: Any, name: str) -> dict[str, Any]:
    value = _parsed(arguments, BAD_TOOL_CALL, f"the arguments of {name!r}")
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise Unusable(BAD_TOOL_CALL, f"the arguments of {name!r} are {kind_of(value)}, not an object")
    return value


def _parsed(value: Any, reason: str, what: str) -> Any:
    """JSON text as its value; what is no text as it is."""
    if not isinstance(value, str) or not value.strip():
        return value.strip() if isinstance(value, str) else value
    try:
        return json_text.parse(value)
    except ValueError as error:
        raise Unusable(reason, f"{what} is text that is not JSON ({error})") from None
