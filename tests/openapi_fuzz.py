"""Requests drawn from an OpenAPI document: as it says, nearly so, and not at all.

Every field of a body is of its schema nine times of ten, so that a request gets as far as the code
behind the schema; `good` bodies, which a test knows, get all the way before they are spoilt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

VERBS = ("get", "put", "post", "delete", "patch")
DEPTH = 4  # of drawn objects: schemas may contain themselves

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
ODD_TEXTS = ["\x00", "ａ", "9" * 300, "../..", "..%2f..", "' OR 1=1 --", "%00", "NaN"]
ODD = st.sampled_from(["", "\ud83d\ude00", *ODD_TEXTS])


@dataclass(frozen=True, slots=True)
class Drawn:
    """One request."""

    verb: str
    path: str
    query: Mapping[str, str]
    content: bytes | None = field(repr=False)
    content_type: str


def routes(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every (verb, path) that the document names."""
    return [(v, p) for p, verbs in document["paths"].items() for v in verbs if v in VERBS]


def draw(
    data: st.DataObject,
    document: Mapping[str, Any],
    verb: str,
    path: str,
    *,
    good: Sequence[Any] = (),
    known: Mapping[str, str] | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Drawn:
    """good: bodies that the route takes; known: values for names in its path that stand for
    something; only: of these query parameters, no other values (no test waits for long polls)."""
    said = document["paths"][path][verb]
    parameters = {item["name"]: item for item in said.get("parameters", ())}
    query = {}
    for name, item in parameters.items():
        if item["in"] == "path":
            value = data.draw(_text(item["schema"], document, (known or {}).get(name)))
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        elif item["in"] == "query" and data.draw(st.booleans()):
            found = only.get(name) if only else None
            text = _text(item["schema"], document, None)
            query[name] = data.draw(text if found is None else st.sampled_from(list(found)))
    kind, content = _content(data, document, said.get("requestBody"), good)
    return Drawn(verb.upper(), path, query, content, kind)


def _text(
    schema: Mapping[str, Any], document: Mapping[str, Any], known: str | None
) -> st.SearchStrategy[str]:
    fitting = values(schema, document).filter(lambda value: value is not None).map(str)
    odd = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
    often = [st.just(known)] * 2 if known is not None else []
    return st.one_of(*often, fitting.filter(bool), odd, st.sampled_from(ODD_TEXTS))


def _content(
    data: st.DataObject,
    document: Mapping[str, Any],
    body: Mapping[str, Any] | None,
    good: Sequence[Any],
) -> tuple[str, bytes | None]:
    if body is None:
        return "application/json", None
    kind, media = next(iter(body["content"].items()))
    if "json" not in kind:
        raws = [item for item in good if isinstance(item, bytes)]
        return kind, data.draw(st.sampled_from([*raws, b""]) | st.binary(max_size=64))
    schema = media.get("schema", {})
    way = data.draw(st.integers(0, 9))
    if way == 0:
        return kind, data.draw(st.binary(max_size=80))
    value = data.draw(ANYTHING if way == 1 else values(schema, document))
    if good and way > 3:
        value = data.draw(st.sampled_from(list(good)))
        if way > 5 and isinstance(value, dict):
            value = _spoilt(data, document, schema, value)
    return kind, json.dumps(value).encode()


def _spoilt(
    data: st.DataObject,
    document: Mapping[str, Any],
    schema: Mapping[str, Any],
    value: Mapping[str, Any],
) -> Any:
    """A good body with one field exchanged, left out or added."""
    names = [*value, "x"]
    name = data.draw(st.sampled_from(names))
    changed = dict(value)
    said = _resolved(schema, document).get("properties", {}).get(name)
    how = data.draw(st.integers(0, 3))
    if how == 0:
        changed.pop(name, None)
    elif how == 1 and said is not None:
        changed[name] = data.draw(values(said, document))
    else:
        changed[name] = data.draw(ODD | ANYTHING)
    return changed


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def values(
    schema: Mapping[str, Any], document: Mapping[str, Any], depth: int = DEPTH
) -> st.SearchStrategy[Any]:
    """Values as the schema says, as far as OpenAPI can say it."""
    schema = _resolved(schema, document)
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return st.one_of(*(values(item, document, depth) for item in schema[name]))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return _objects(schema, document, depth)
    if kind == "array":
        if depth == 0:
            return st.just([])
        least = schema.get("minItems", 0)
        items = values(schema.get("items", {}), document, depth - 1)
        return st.lists(items, min_size=least, max_size=max(least, 2))
    if kind == "string":
        return _strings(schema)
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if kind == "integer":
            return st.integers(low, high)
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if kind == "boolean":
        return st.booleans()
    return st.none() if kind == "null" else ANYTHING


def _objects(
    schema: Mapping[str, Any], document: Mapping[str, Any], depth: int
) -> st.SearchStrategy[dict[str, Any]]:
    named = schema.get("properties", {})
    required = set(schema.get("required", ()))
    if depth == 0:
        return st.just({})
    if not named:
        inner = schema.get("additionalProperties", {})
        inner = inner if isinstance(inner, Mapping) else {}
        return st.dictionaries(st.text(max_size=12), values(inner, document, depth - 1), max_size=2)
    made = {name: values(item, document, depth - 1) for name, item in named.items()}
    return st.fixed_dictionaries(
        {name: one for name, one in made.items() if name in required},
        optional={name: one for name, one in made.items() if name not in required},
    )


def _strings(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    least = schema.get("minLength", 0)
    return st.text(min_size=least, max_size=min(schema.get("maxLength", 40), least + 40))
