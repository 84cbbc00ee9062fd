"""Paths, edits and selections of payloads."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.api.decode import decode
from core.api.reads import ScrollBody
from core.api.selectors import parse_with_payload
from core.errors import BadRequest
from core.payload import (
    Path,
    PayloadSelector,
    decode_payload,
    delete_keys,
    elements_at,
    encode_payload,
    parse_path,
    set_payload,
    values_at,
)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a", ("a",)),
        ("a.b", ("a", "b")),
        ("a[].b", ("a", None, "b")),
        ("a[0].b", ("a", 0, "b")),
        ('"a.b".c', ("a.b", "c")),
        ('""', ("",)),
        ("a[][0]", ("a", None, 0)),
        ("ключ-1_x", ("ключ-1_x",)),
        ('a."b c"[]', ("a", "b c", None)),
    ],
)
def test_a_path_is_read_into_steps(text: str, steps: tuple[str | int | None, ...]) -> None:
    assert parse_path(text).steps == steps
    assert parse_path(str(parse_path(text))).steps == steps


@pytest.mark.parametrize(
    "text",
    ["", ".", "a.", ".a", "a..b", "[0]", "a[", "a[x]", "a[-1]", "a[0]b", "a b", '"a', 'a"b"', "a[].", "a]"],
)
def test_a_wrong_path_is_refused_and_shown(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_path(text)
    assert repr(text) in str(caught.value)


@given(st.lists(st.one_of(st.text(st.characters(exclude_characters='"')), st.none(), st.integers(0, 99))))
def test_every_path_can_be_written_down(steps: list[Any]) -> None:
    path = Path(("first", *steps))
    assert parse_path(str(path)) == path


PAYLOAD = {"a": {"b": 1}, "l": [{"x": 1}, {"x": [2, 3]}, 4], "a.b": 5, "": 6, "n": None}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("a.b", [1]),
        ("l.x", []),
        ("l[].x", [1, [2, 3]]),
        ("l[1].x", [[2, 3]]),
        ("l[9].x", []),
        ("l[2]", [4]),
        ('"a.b"', [5]),
        ('""', [6]),
        ("n", [None]),
        ("missing", []),
        ("a[]", []),
    ],
)
def test_a_path_selects_values(path: str, values: list[Any]) -> None:
    assert values_at(PAYLOAD, parse_path(path)) == values


def test_elements_flatten_one_level() -> None:
    assert elements_at({"a": [1, [2]]}, parse_path("a")) == [1, [2]]
    assert elements_at(PAYLOAD, parse_path("l[].x")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("old", "new", "key", "expected"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, None, {"a": 1, "b": 3, "c": 4}),
        ({"a": {"x": 1}}, {"a": {"y": 2}}, None, {"a": {"y": 2}}),
        ({"a": 1, "b": 2}, {"a": None}, None, {"b": 2}),
        ({"a": {"x": 1}}, {"y": 2}, "a", {"a": {"x": 1, "y": 2}}),
        ({}, {"y": 2}, "a.b", {"a": {"b": {"y": 2}}}),
        ({"a": 5}, {"y": 2}, "a.b", {"a": {"b": {"y": 2}}}),
        ({"l": [{"x": 1}, 2]}, {"y": 3}, "l[]", {"l": [{"x": 1, "y": 3}, {"y": 3}]}),
        ({"l": [{"x": 1}, 2]}, {"y": 3}, "l[0]", {"l": [{"x": 1, "y": 3}, 2]}),
        ({"l": [1]}, {"y": 3}, "l[9]", {"l": [1]}),
        ({"l": 1}, {"y": 3}, "l[]", {"l": []}),
        ({}, {"y": 3}, "l[].a", {"l": []}),
    ],
)
def test_set_merges_at_its_key(old: Any, new: Any, key: str | None, expected: Any) -> None:
    before = copy.deepcopy(old)
    assert set_payload(old, new, None if key is None else parse_path(key)) == expected
    assert old == before


def test_what_is_set_in_several_places_is_not_shared() -> None:
    out = set_payload({"l": [{}, {}]}, {"o": {}}, parse_path("l[]"))
    out["l"][0]["o"]["x"] = 1
    assert out["l"][1] == {"o": {}}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a"], {"l": [{"x": 1, "y": 2}, 3]}),
        (["a.b"], {"a": {"c": 2}, "l": [{"x": 1, "y": 2}, 3]}),
        (["l[].x", "a"], {"l": [{"y": 2}, 3]}),
        (["l[0].y", "a"], {"l": [{"x": 1}, 3]}),
        (["l[]", "a"], {"l": []}),
        (["l[0]", "a"], {"l": [{"x": 1, "y": 2}, 3]}),
        (["missing", "l.x", "a"], {"l": [{"x": 1, "y": 2}, 3]}),
    ],
)
def test_delete_takes_paths(paths: list[str], expected: Any) -> None:
    payload = {"a": {"b": 1, "c": 2}, "l": [{"x": 1, "y": 2}, 3]}
    assert delete_keys(payload, [parse_path(path) for path in paths]) == expected
    assert payload["a"] == {"b": 1, "c": 2}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (["a"], {"a": {"b": 1, "c": 2}}),
        (["a.b"], {"a": {"b": 1}}),
        ([], {}),
        (["x"], {}),
        (["l[].x"], {"l": [{"x": 1}, {}]}),
        (["l[0]"], {"l": []}),
        (["l"], {"l": [{"x": 1, "y": 2}, {"y": 3}]}),
        (["l[]"], {"l": [{"x": 1, "y": 2}, {"y": 3}]}),
        ({"include": ["a.b", "a"]}, {"a": {"b": 1, "c": 2}}),
        ({"exclude": ["a", "l[].y"]}, {"l": [{"x": 1}, {}]}),
        ({"exclude": ["l", "a.b"]}, {"a": {"c": 2}}),
        ({"exclude": []}, {"a": {"b": 1, "c": 2}, "l": [{"x": 1, "y": 2}, {"y": 3}]}),
        (True, {"a": {"b": 1, "c": 2}, "l": [{"x": 1, "y": 2}, {"y": 3}]}),
    ],
)
def test_with_payload_includes_or_excludes_paths(selector: Any, expected: Any) -> None:
    payload = {"a": {"b": 1, "c": 2}, "l": [{"x": 1, "y": 2}, {"y": 3}]}
    body = decode(ScrollBody, json.dumps({"with_payload": selector}).encode())
    assert parse_with_payload(body.with_payload, default=False).apply(payload) == expected


@pytest.mark.parametrize(
    "selector",
    [{"include": ["a"], "exclude": ["b"]}, {}, {"includ": ["a"]}, "a", 1, ["a..b"], {"include": "a"}],
)
def test_a_wrong_selector_is_refused(selector: Any) -> None:
    with pytest.raises(BadRequest):
        parse_with_payload(
            decode(ScrollBody, json.dumps({"with_payload": selector}).encode()).with_payload, default=False
        )


@pytest.mark.parametrize("raw", [b"", b"null", b"{}"])
def test_no_payload_is_an_empty_one(raw: bytes) -> None:
    assert decode_payload(raw) == {}


@pytest.mark.parametrize("raw", [b"[1]", b'"x"', b'{"a":1e999}', b'{"a":"\xff"}', b'{"a":', b'{"a":NaN}'])
def test_a_payload_that_could_not_be_read_again_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest, match="payload"):
        decode_payload(raw)


def test_a_payload_is_not_nested_without_end() -> None:
    assert decode_payload(b'{"a":' + b"[" * 127 + b"]" * 127 + b"}")
    for levels in (128, 100_000):
        with pytest.raises(BadRequest, match="128 levels"):
            decode_payload(b'{"a":' + b"[" * levels + b"]" * levels + b"}")
    assert decode_payload(b'{"a":[' + b"[]," * 500 + b"[]]}")


def test_an_integer_beyond_64_bits_comes_back_as_it_was() -> None:
    payload = decode_payload(b'{"a":123456789012345678901234567890,"b":[18446744073709551615]}')
    assert json.loads(encode_payload(payload)) == payload


# -- the same as qdrant-client's local mode -----------------------------------------------------------------


def _random_value(rng: random.Random, depth: int) -> Any:
    luck = rng.random()
    if depth and luck < 0.4:
        return {key: _random_value(rng, depth - 1) for key in "abc" if rng.random() < 0.7}
    if depth and luck < 0.65:
        return [_random_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    return rng.choice((None, 1, "x", True))


def _random_path(rng: random.Random) -> str:
    return ".".join(
        rng.choice("abc") + rng.choice(("", "", "", "[]", "[0]", "[1]"))
        for _ in range(rng.choice((1, 2, 2, 3)))
    )


@pytest.mark.compat
@pytest.mark.parametrize("seed", range(5))
def test_edits_and_selections_agree_with_local_mode(seed: int) -> None:
    setter = pytest.importorskip("qdrant_client.local.payload_value_setter")
    paths = pytest.importorskip("qdrant_client.local.json_path_parser")
    extractor = pytest.importorskip("qdrant_client.local.payload_value_extractor")
    rng = random.Random(seed)
    for _ in range(1_000):
        payload = {key: _random_value(rng, 3) for key in "abc"}
        new = {key: _random_value(rng, 1) for key in "ab" if rng.random() < 0.6}
        key = _random_path(rng)
        theirs = copy.deepcopy(payload)
        setter.set_value_by_key(theirs, paths.parse_json_path(key), copy.deepcopy(new))
        assert set_payload(payload, new, parse_path(key)) == theirs, (payload, new, key)
        theirs = copy.deepcopy(payload)
        setter.delete_value_by_key(theirs, paths.parse_json_path(key))
        assert delete_keys(payload, [parse_path(key)]) == theirs, (payload, key)
        several = [_random_path(rng) for _ in range(rng.randrange(4))]
        parsed = tuple(parse_path(one) for one in several)
        include, exclude = PayloadSelector(True, include=parsed), PayloadSelector(True, exclude=parsed)
        assert include.apply(payload) == extractor.include_payload(payload, several), (payload, several)
        assert exclude.apply(payload) == extractor.exclude_payload(payload, several), (payload, several)
        flat = extractor.value_by_key(payload, key) or []
        assert elements_at(payload, parse_path(key)) == flat, (payload, key)
