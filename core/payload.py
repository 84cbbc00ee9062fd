"""Paths into a payload, and every edit and selection that requests make with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec

from core.errors import BadRequest, TooLarge

Payload = dict[str, Any]
Step = str | int | None
"""A key of an object, a position in a list, or None: each element of a list (`[]`)."""

_BARE = re.compile(r"[\w-]+")
_INDEX = re.compile(r"\[([0-9]{0,20})\]")
DEPTH_MAX = 128
PATH_CHARS_MAX = 4096
PAYLOAD_BYTES_MAX = 8 << 20
"""Of one point, after an edit. An upsert's payload is smaller, as an entry of the log is."""


@dataclass(frozen=True, slots=True)
class Path:
    """`a.b`, `a[].b`, `a[0].b`, `"a.b".c`. Equal paths have equal steps, however they were written."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        text = ""
        for step in self.steps:
            if isinstance(step, str):
                bare = _BARE.fullmatch(step) is not None
                text += ("." if text else "") + (step if bare else f'"{step}"')
            else:
                text += "[]" if step is None else f"[{step}]"
        return text


@lru_cache(maxsize=1024)
def parse_path(text: str) -> Path:
    """Raises BadRequest, naming the path."""
    steps: list[Step] = []
    at = 0
    while True:
        if text[at : at + 1] == '"':
            end = text.find('"', at + 1)
            if end < 0:
                raise _bad_path(text)
            steps.append(text[at + 1 : end])
            at = end + 1
        else:
            bare = _BARE.match(text, at)
            if bare is None:
                raise _bad_path(text)
            steps.append(bare.group())
            at = bare.end()
        while (index := _INDEX.match(text, at)) is not None:
            steps.append(int(index.group(1)) if index.group(1) else None)
            at = index.end()
        if at == len(text):
            if len(steps) > DEPTH_MAX or len(text) > PATH_CHARS_MAX:
                raise BadRequest(
                    f"Wrong input: payload path of {len(steps)} levels, {len(text)} characters: at most "
                    f"{DEPTH_MAX} levels and {PATH_CHARS_MAX} characters are possible"
                )
            return Path(tuple(steps))
        if text[at] != ".":
            raise _bad_path(text)
        at += 1


def _bad_path(text: str) -> BadRequest:
    shown = text if len(text) <= 80 else text[:79] + "…"
    return BadRequest(
        f'Wrong input: Invalid payload path: {shown!r}, expected for example a.b, a[].b or "a b".c'
    )


# -- reading ------------------------------------------------------------------------------------------------


def values_at(payload: Any, path: Path) -> list[Any]:
    """Every value that the path selects; a list is one value. Empty if the path leads nowhere."""
    nodes = [payload]
    for step in path.steps:
        if isinstance(step, str):
            nodes = [node[step] for node in nodes if isinstance(node, dict) and step in node]
        elif step is None:
            nodes = [element for node in nodes if isinstance(node, list) for element in node]
        else:
            nodes = [node[step] for node in nodes if isinstance(node, list) and step < len(node)]
        if not nodes:
            break
    return nodes


def elements_at(payload: Any, path: Path) -> list[Any]:
    """As `values_at`, but a list counts by its elements (one level)."""
    flat: list[Any] = []
    for value in values_at(payload, path):
        if isinstance(value, list):
            flat.extend(value)
        else:
            flat.append(value)
    return flat


def getter(path: Path) -> Callable[[Payload], Sequence[Any]]:
    """`elements_at` for one path and many payloads; the usual path of one key is looked up directly."""
    if len(path.steps) != 1:
        return lambda payload: elements_at(payload, path)
    key = path.steps[0]

    def get(payload: Payload) -> Sequence[Any]:
        if key not in payload:
            return ()
        value = payload[key]
        return value if isinstance(value, list) else (value,)

    return get


# -- from and to JSON ---------------------------------------------------------------------------------------

_DECODER = msgspec.json.Decoder(dict[str, Any])


def decode_payload(raw: bytes) -> Payload:
    """The payload that stored or received JSON spells; nothing and null are `{}`.

    Raises BadRequest for what is no object, for numbers out of range, and for nesting over 128 levels.
    """
    if raw in (b"", b"null"):
        return {}
    try:
        payload = _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"Wrong input: payload: {str(error)[:100]}") from None
    except RecursionError:
        raise BadRequest(f"Wrong input: payload: nested over {DEPTH_MAX} levels deep") from None
    if raw.count(b"[") + raw.count(b"{") > DEPTH_MAX and depth_of(payload) > DEPTH_MAX:
        raise BadRequest(f"Wrong input: payload: nested over {DEPTH_MAX} levels deep")
    return payload


def parse_set_path(text: str, new: Payload) -> Path:
    """The path to set `new` at. Raises BadRequest also if the payload could not be read again afterwards."""
    path = parse_path(text)
    if len(path.steps) + depth_of(new) > DEPTH_MAX:
        raise BadRequest(f"Wrong input: payload: with its key nested over {DEPTH_MAX} levels deep")
    return path


def encode_payload(payload: Payload) -> bytes:
    return msgspec.json.encode(payload)


def depth_of(value: Any) -> int:
    """How many levels of lists and objects a JSON value has."""
    level, depth = [value], 0
    while level:
        depth += 1
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    return depth


# -- editing: each returns a new payload and leaves the old one alone ----------------------------------------


def merge(old: Payload, new: Payload) -> Payload:
    """Top-level keys of `new` over `old`; a null removes its key."""
    out = dict(old)
    for key, value in new.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = value
    return out


def set_payload(old: Payload, new: Payload, key: Path | None = None) -> Payload:
    """`new` merged into the payload, or into every object at `key`.

    Objects that the path misses are made, what is no object on its way is replaced (by an empty list where
    the path goes on with `[]` or `[0]`); a position beyond a list's end changes nothing.
    Raises TooLarge if it would be set at so many places that the payload exceeds PAYLOAD_BYTES_MAX.
    """
    if key is None:
        return merge(old, new)
    if None in key.steps:
        through_lists = len(key.steps) - key.steps[::-1].index(None)
        places = len(values_at(old, Path(key.steps[:through_lists])))
        if places * len(encode_payload(new)) > PAYLOAD_BYTES_MAX:
            raise TooLarge(f"payload: over {PAYLOAD_BYTES_MAX} bytes after it was set at {places} places")
    changed: Payload = _set(deepcopy(old), key.steps, new)
    return changed


def _set(node: Any, steps: tuple[Step, ...], new: Payload) -> Any:
    if not steps:
        return merge(node if isinstance(node, dict) else {}, deepcopy(new))
    step, rest = steps[0], steps[1:]
    if isinstance(step, str):
        made = node if isinstance(node, dict) else {}
        made[step] = _set(made.get(step), rest, new)
        return made
    if not isinstance(node, list):
        return []
    if step is None:
        return [_set(element, rest, new) for element in node]
    if step < len(node):
        node[step] = _set(node[step], rest, new)
    return node


def delete_keys(old: Payload, paths: Iterable[Path]) -> Payload:
    """The payload without what is at the paths. `a[]` empties the list; `a[0]` alone changes nothing."""
    out = deepcopy(old)
    for path in paths:
        *parents, last = path.steps
        for node in values_at(out, Path(tuple(parents))) if parents else [out]:
            if isinstance(last, str) and isinstance(node, dict):
                node.pop(last, None)
            elif last is None and isinstance(node, list):
                node.clear()
    return out


# -- selecting: `with_payload` ------------------------------------------------------------------------------

_Tree = dict[Step, Any]


@dataclass(frozen=True, slots=True)
class PayloadSelector:
    """Which part of a payload an answer carries. The answer has no payload at all if `wanted` is false."""

    wanted: bool
    include: tuple[Path, ...] | None = None
    exclude: tuple[Path, ...] | None = None
    _tree: _Tree = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tree", _tree_of(self.include or self.exclude or ()))

    @property
    def whole(self) -> bool:
        """The stored JSON can be passed on as it is."""
        return self.wanted and self.include is None and self.exclude is None

    def apply(self, payload: Payload) -> Payload:
        if self.include is not None:
            included: Payload = _included(payload, self._tree)
            return included
        if self.exclude is not None:
            excluded: Payload = _excluded(payload, self._tree)
            return excluded
        return payload


def _tree_of(paths: Sequence[Path]) -> _Tree:
    """Paths as a tree; True stands for everything below."""
    tree: _Tree = {}
    for path in paths:
        node = tree
        for step in path.steps[:-1]:
            below = node.setdefault(step, {})
            if below is True:
                break
            node = below
        else:
            node[path.steps[-1]] = True
    return tree


def _included(value: Any, tree: _Tree) -> Any:
    if isinstance(value, dict):
        return {
            key: item if tree[key] is True else _included(item, tree[key])
            for key, item in value.items()
            if key in tree
        }
    if isinstance(value, list):
        below = tree.get(None)
        if below is None:
            return []  # a list is entered by `[]` alone
        return value if below is True else [_included(item, below) for item in value]
    return value


def _excluded(value: Any, tree: _Tree) -> Any:
    if isinstance(value, dict):
        return {
            key: _excluded(item, tree[key]) if key in tree else item
            for key, item in value.items()
            if tree.get(key) is not True
        }
    if isinstance(value, list):
        below = tree.get(None)
        if below is None:
            return value
        return [] if below is True else [_excluded(item, below) for item in value]
    return value


EVERYTHING = PayloadSelector(wanted=True)
NOTHING = PayloadSelector(wanted=False)
