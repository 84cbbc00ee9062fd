"""JSON bodies to typed requests: one way in; every mistake is a BadRequest that names the field."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, TypeVar

import msgspec

from core.errors import BadRequest, NotSupported

T = TypeVar("T")

_AT = re.compile(r"^(.*?) - at `(key in )?\$?\.?(.*)`$", re.DOTALL)
_TEXT_MAX = 100


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Building a decoder costs a millisecond, so each type has one."""
    return msgspec.json.Decoder(kind)


def decode(kind: type[T], body: bytes) -> T:
    """The request that the body spells. Raises BadRequest, or NotSupported for what Shoal refuses.

    An empty body counts as `{}`, so that calls whose fields are all optional may leave it out.
    """
    try:
        if not body.isascii():
            # msgspec skips unknown fields and raw payloads without looking at their bytes.
            str(body, "utf-8")
        key: Any = kind
        request: T = _decoder(key).decode(body or b"{}")
        return request
    except msgspec.ValidationError as error:
        raise _explain(kind, str(error), body) from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not valid UTF-8: byte {error.start}") from None
    except RecursionError:
        raise BadRequest("the body is not acceptable: lists or objects are nested too deeply") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not JSON: {_plain(str(error))}") from None


def _plain(text: str) -> str:
    return text.replace("`", "").removeprefix("JSON is malformed: ")[:_TEXT_MAX]


def _explain(kind: type[Any], text: str, body: bytes) -> BadRequest:
    """msgspec's text `Expected …, got … - at `$.a[0]`` as `a[0]: expected …, got …`."""
    at = _AT.match(text)
    if at is None:
        return BadRequest(f"Wrong input: {_lower(_plain(text))}")
    what, path = at.group(1), at.group(3)
    refused = _refused_form(path, body)
    if refused is not None:
        return NotSupported(f"{path[:80]}: {refused}")
    return BadRequest(f"Wrong input: {path[:80] or 'the body'}: {_lower(_plain(what))}")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _refused_form(path: str, body: bytes) -> str | None:
    """What Qdrant would take at this path and Shoal does not; None if it is merely wrong."""
    try:
        node: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    nodes = [node]
    seen = [node]
    for step in re.findall(r"\[\d+\]|\[\.\.\.\]|[^.\[]+", path):
        nodes = [child for node in nodes[:64] for child in _children(node, step)]
        seen = [*seen[-256:], *nodes]
    for node in reversed(seen):
        form = refused_vector(node)
        if form is not None:
            return form
    return None


def _children(node: Any, step: str) -> list[Any]:
    if step == "[...]":
        return list(node.values())[:256] if isinstance(node, dict) else []
    if step.startswith("["):
        i = int(step[1:-1])
        return [node[i]] if isinstance(node, list) and i < len(node) else []
    return [node[step]] if isinstance(node, dict) and step in node else []


def refused_vector(value: Any) -> str | None:
    """Why this form of a vector is refused, if it is one of Qdrant's others."""
    if isinstance(value, dict):
        if "indices" in value and "values" in value:
            return "sparse vectors are not supported"
        if "model" in value and any(kind in value for kind in ("text", "image", "object")):
            return "inference (Document, Image, object) is not supported: send the vector itself"
    if isinstance(value, list) and value and isinstance(value[0], list):
        inner = value[0]
        if inner and isinstance(inner[0], (int, float)) and not isinstance(inner[0], bool):
            return "multivectors (lists of lists) are not supported"
    return None


def convert(kind: type[T], value: Any, where: str) -> T:
    """A part that was decoded without a type, because its type depends on what it holds."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        at = _AT.match(str(error))
        what, path = (at.group(1), at.group(3)) if at else (str(error), "")
        full = f"{where}{'' if not path or path.startswith('[') else '.'}{path}"
        raise BadRequest(f"Wrong input: {full[:80]}: {_lower(_plain(what))}") from None
