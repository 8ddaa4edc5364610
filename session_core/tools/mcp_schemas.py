"""The tools that an MCP server lists, one by one, in the form that model servers take."""

from __future__ import annotations

from typing import Any

from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]
from jsonschema.validators import Draft202012Validator, validator_for  # type: ignore[import-untyped]

# What OpenAI's API does not take at the top of a schema.
_FOLDED = ("allOf", "anyOf", "oneOf", "enum", "not", "$ref")
_NO_SCHEMAS = ("default", "const", "enum", "examples")  # what holds values


def read_tools(tools: object) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The tools of a list that are understood, in the form of the SDK, and why others are left out, by name."""
    found, left_out = [], {}
    for number, tool in enumerate(tools if isinstance(tools, list) else [tools], 1):
        fields = tool if isinstance(tool, dict) else {}
        name = fields.get("name")
        try:
            if not isinstance(name, str) or not name:
                raise ValueError("it has no name")
            found.append(_tool(name, fields))
        except (ValueError, RecursionError) as error:
            left_out[name if isinstance(name, str) and name else f"number {number}"] = str(error)
    return found, left_out


def _tool(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    execution = fields.get("execution")
    if isinstance(execution, dict) and execution.get("taskSupport") == "required":
        raise ValueError("it can be called as a task only")
    description = fields.get("description") or fields.get("title") or ""
    if not isinstance(description, str):
        raise ValueError("its description is no text")
    return {"name": name, "description": description, "inputSchema": _input_schema(fields.get("inputSchema"))}


def _input_schema(given: object) -> dict[str, Any]:
    """The schema of an object, with what `anyOf` and the like have at its top as properties.

    Raises ValueError where it is not understood.
    """
    schema = _object(given, "its schema")
    kind = schema.get("type") or "object"
    if "object" not in (kind if isinstance(kind, list) else [kind]):
        raise ValueError(f"its arguments are no object but {kind}")
    properties: dict[str, list[Any]] = {}
    required: dict[str, None] = {}
    parts, seen = [(schema, True)], set()
    for part, certain in parts:  # which grows meanwhile
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        for name, one in _object(part.get("properties"), "its properties").items():
            if one is not False and one not in properties.setdefault(name, []):
                properties[name].append(one)
        if certain:
            required |= dict.fromkeys(name for name in _list(part.get("required")) if isinstance(name, str))
        parts += [(one, certain) for one in [*_list(part.get("allOf")), _target(schema, part.get("$ref"))]]
        parts += [(one, False) for word in ("anyOf", "oneOf") for one in _list(part.get(word))]
    rest = {key: value for key, value in schema.items() if value is not None and key not in (*_FOLDED, "required")}
    merged = {name: _property(name, ones) for name, ones in properties.items()}
    folded = {**rest, "type": "object", "properties": merged} | ({"required": [*required]} if required else {})
    if not isinstance(folded.get("$schema", ""), str):
        del folded["$schema"]
    try:
        validator_for(folded, default=Draft202012Validator).check_schema(folded)
    except SchemaError as error:
        raise ValueError(f"its schema is not understood: {error.message[:200]}") from None
    whole = _with_items(folded)
    assert isinstance(whole, dict)
    return whole


def _property(name: str, ones: list[Any]) -> dict[str, Any]:
    """The schema of a property that several parts may describe."""
    schemas = [{} if one is True else _object(one, f"its property {name}") for one in ones]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _object(value: object, what: str) -> dict[str, Any]:
    """An object, which PHP writes as an array where it is empty."""
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not understood")
    return value


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _target(schema: Any, reference: object) -> Any:
    """What a `$ref` into the same schema names, or None."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/"):
        schema = schema.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(schema, dict) else None
    return schema


def _with_items(schema: Any) -> Any:
    """The schema, in which every array says what it holds: OpenAI refuses one that does not."""
    if isinstance(schema, list):
        return [_with_items(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    items = {"items": {}} if schema.get("type") == "array" and "items" not in schema else {}
    return {key: one if key in _NO_SCHEMAS else _with_items(one) for key, one in schema.items()} | items
