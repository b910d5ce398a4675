"""Reads tools and tool calls of published datasets into the form that chat templates take.

{"type": "function", "function": {"name": …, "arguments": {…}}}: OpenAI's form of a call, with the
arguments as an object, as transformers asks for; OpenAI itself writes them as JSON text.
"""

from __future__ import annotations

import json
from typing import Any

from llamita.data.file_formats import json_name, names_once
from llamita.errors import SourceError


def parse_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """The tools of a row: an array of objects, or the same as JSON text. Raises SourceError."""
    tools = parse_json(value, f"cannot use {where}: tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise SourceError(f"cannot use {where}: tools: expected an array of objects, found {json_name(tools)}")
    for number, tool in enumerate(tools):
        if tool_name(tool) is None:
            raise SourceError(f"cannot use {where}: tools[{number}]: expected an object with a name, found none")
    return tools


def parse_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """The calls of a message: one or several, as objects or JSON text. where: begins the error.

    Raises SourceError.
    """
    calls = parse_json(value, where)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list) or not calls:
        raise SourceError(f"{where}: expected tool calls, found {json_name(calls)}")
    return [_call(call, f"{where}[{number}]" if len(calls) > 1 else where) for number, call in enumerate(calls)]


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise SourceError(f"{where}: expected a tool call with a name and arguments, found {json_name(call)}")
    arguments = parse_json(function.get("arguments", function.get("parameters", {})) or {}, f"{where}: arguments")
    if not isinstance(arguments, dict):
        raise SourceError(f"{where}: arguments: expected an object, found {json_name(arguments)}")
    more = {key: call[key] for key in ("id",) if key in call}
    return {**more, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def parse_json(value: Any, where: str) -> Any:
    """The value, or what it says if it is JSON text. Raises SourceError."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=names_once(None))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: broken JSON text: {' '.join(str(error).split())[:120]}") from None


def tool_name(tool: dict[str, Any]) -> str | None:
    """The name of a tool or of a call."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name else None
