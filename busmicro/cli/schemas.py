"""JSON Schema for people: which fields there are, and what a message could look like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_MOST_NESTED = 6

_BY_TYPE: dict[str, object] = {
    "string": "",
    "integer": 0,
    "number": 0.0,
    "boolean": False,
    "null": None,
}
_BY_FORMAT = {
    "date-time": "2026-01-31T12:00:00Z",
    "date": "2026-01-31",
    "time": "12:00:00Z",
    "duration": "PT1M",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "name@example.com",
    "uri": "https://example.com",
    "ipv4": "192.0.2.1",
}


class Schema:
    """A JSON Schema with its definitions at hand.

    Args:
        schema: The part that is meant.
        whole: All of it, with `$defs`; left out, the part is all.
    """

    def __init__(self, schema: object, whole: Mapping[str, Any] | None = None) -> None:
        part: dict[str, Any] = schema if isinstance(schema, dict) else {}
        self._whole = part if whole is None else whole
        self._part = self._resolve(part)

    def _resolve(self, part: dict[str, Any]) -> dict[str, Any]:
        for _ in range(_MOST_NESTED):
            name = str(part.get("$ref", "")).rpartition("/")[2]
            target = self._whole.get("$defs", {}).get(name)
            if not isinstance(target, dict):
                break
            part = {**target, **{key: part[key] for key in part if key != "$ref"}}
        return part

    def _inner(self, schema: object) -> Schema:
        return Schema(schema, self._whole)

    def _choices(self) -> list[Schema]:
        found = self._part.get("anyOf") or self._part.get("oneOf") or self._part.get("allOf") or []
        return [self._inner(choice) for choice in found]

    @property
    def _properties(self) -> dict[str, Any]:
        found = self._part.get("properties")
        return found if isinstance(found, dict) else {}

    # --- texts ----------------------------------------------------------------------------------

    @property
    def takes_text(self) -> bool:
        """May it be a text?"""
        return self.takes_only_text or any(choice.takes_text for choice in self._choices())

    @property
    def takes_only_text(self) -> bool:
        """Must it be a text?"""
        return self._part.get("type") == "string"

    # --- which fields there are -----------------------------------------------------------------

    def fields(self) -> list[str]:
        """List the fields, like `name: string` and `size: integer = 1`; one type if it has none."""
        required = self._part.get("required", [])
        lines = []
        for name, schema in self._properties.items():
            inner = self._inner(schema)
            mark = "" if name in required else inner.default_text()
            lines.append(f"{name}: {inner.type_name()}{mark}")
        return lines or ([self.type_name()] if self._part else [])

    def default_text(self) -> str:
        """Say what holds where a field is left out."""
        if "default" in self._part:
            return f" = {json.dumps(self._part['default'], ensure_ascii=False)}"
        return " (optional)"

    def type_name(self) -> str:
        """Name the type, like `string`, `array of Item` or `integer or null`."""
        if "enum" in self._part:
            return " | ".join(repr(value) for value in self._part["enum"])
        if "const" in self._part:
            return repr(self._part["const"])
        if choices := self._choices():
            return " or ".join(choice.type_name() for choice in choices)
        kind = self._part.get("type", "any")
        if kind == "array" and "items" in self._part:
            return f"array of {self._inner(self._part['items']).type_name()}"
        if kind == "object":
            return str(self._part.get("title", "object"))
        return str(self._part.get("format", kind))

    # --- what it could look like ----------------------------------------------------------------

    def example(self, depth: int = 0) -> object:
        """Make up a message: what the schema names, else something plain of the right type."""
        named = self._named_value()
        if named is not None:
            return named[0]
        if choices := self._choices():
            return choices[0].example(depth)
        kind = self._part.get("type")
        if kind == "object" or self._properties:
            return self._object(depth)
        if kind in ("array", "set"):
            return self._array(depth)
        return self._scalar(str(kind))

    def _named_value(self) -> tuple[object] | None:
        if self._part.get("examples"):
            return (self._part["examples"][0],)
        for key in ("default", "const"):
            if key in self._part:
                return (self._part[key],)
        return (self._part["enum"][0],) if self._part.get("enum") else None

    def _object(self, depth: int) -> dict[str, object]:
        required = self._part.get("required", [])
        deep = depth >= _MOST_NESTED
        wanted = {n: s for n, s in self._properties.items() if n in required or not deep}
        if depth >= 2 * _MOST_NESTED:
            return {}
        return {name: self._inner(schema).example(depth + 1) for name, schema in wanted.items()}

    def _array(self, depth: int) -> list[object]:
        if "prefixItems" in self._part:
            return [self._inner(item).example(depth + 1) for item in self._part["prefixItems"]]
        if depth >= _MOST_NESTED or "items" not in self._part:
            return []
        return [self._inner(self._part["items"]).example(depth + 1)]

    def _scalar(self, kind: str) -> object:
        if kind == "string":
            text = _BY_FORMAT.get(str(self._part.get("format")), "")
            return text or "x" * int(self._part.get("minLength", 0)) or "text"
        if kind in ("integer", "number"):
            return self._number()
        return _BY_TYPE.get(kind)

    def _number(self) -> int:
        """Return a small whole number within the bounds; bounds with fractions are rounded."""
        if "minimum" in self._part:
            return math.ceil(float(self._part["minimum"]))
        if "exclusiveMinimum" in self._part:
            return math.floor(float(self._part["exclusiveMinimum"])) + 1
        highest = float(self._part.get("maximum", self._part.get("exclusiveMaximum", 2)))
        return 1 if highest > 1 else math.ceil(highest) - 1
