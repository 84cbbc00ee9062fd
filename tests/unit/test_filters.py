"""Every condition of the filter language, as a table of payloads that match and that don't."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.api.checks import Limits
from core.api.decode import decode
from core.api.filters import FilterBody, parse_filter
from core.errors import BadRequest, Unprocessable
from core.filters import Filter, MatchValue, compile_filter, matches
from core.hashing import id_key
from core.payload import parse_path
from core.tokens import TextOptions

ID = "00000000-0000-0000-0000-00000000000c"


def parse(filter_: Any, limits: Limits | None = None) -> Filter:
    body = decode(FilterBody, json.dumps(filter_).encode())
    return parse_filter(body, limits or Limits()) or Filter()


def match(filter_: Any, payload: dict[str, Any], id_: int | str = 1, vectors: tuple[str, ...] = ()) -> bool:
    return matches(parse(filter_), id_key(id_), payload, vectors)


def on(key: str, **tests: Any) -> dict[str, Any]:
    return {"must": {"key": key, **tests}}


@pytest.mark.parametrize(
    ("wanted", "value", "holds"),
    [
        ("red", "red", True),
        ("red", "Red", False),
        ("red", ["blue", "red"], True),
        ("red", [["red"]], False),
        (1, 1, True),
        (1, 1.0, False),
        (1, True, False),
        (1, "1", False),
        (True, True, True),
        (True, 1, False),
        ("", "", True),
        ("a", None, False),
        ("a", {"a": "a"}, False),
    ],
)
def test_a_match_compares_value_and_type(wanted: Any, value: Any, holds: bool) -> None:
    assert match(on("a", match={"value": wanted}), {"a": value}) is holds


@pytest.mark.parametrize(
    ("values", "value", "holds"),
    [
        (["x", "y"], "y", True),
        ([1, 2], 2, True),
        ([1, 2], 2.0, False),
        ([1], True, False),
        ([], "x", False),
        (["x"], ["z", "x"], True),
    ],
)
def test_any_holds_if_one_value_is_listed(values: list[Any], value: Any, holds: bool) -> None:
    assert match(on("a", match={"any": values}), {"a": value}) is holds


@pytest.mark.parametrize(
    ("values", "payload", "holds"),
    [
        (["x"], {"a": "y"}, True),
        (["x"], {"a": "x"}, False),
        (["x"], {"a": ["x", "y"]}, True),
        (["x"], {"a": 1}, True),
        ([1], {"a": True}, True),
        (["x"], {"a": None}, False),
        (["x"], {"a": []}, False),
        (["x"], {}, False),
        ([], {"a": "x"}, True),
        ([], {"a": [None]}, False),
    ],
)
def test_except_holds_if_some_value_is_not_listed(
    values: list[Any], payload: dict[str, Any], holds: bool
) -> None:
    assert match(on("a", match={"except": values}), payload) is holds


@pytest.mark.parametrize(
    ("kind", "text", "value", "holds"),
    [
        ("text", "deep sea", "the deep sea", True),
        ("text", "sea deep", "the deep sea", False),
        ("text", "Deep", "the deep sea", False),
        ("text", "ee", "the deep sea", True),
        ("phrase", "deep sea", "the deep sea", True),
        ("text_any", "lake sea", "the deep sea", True),
        ("text_any", "lake", "the deep sea", False),
        ("text_any", "", "the deep sea", False),
        ("prefix", "the", "the deep sea", True),
        ("prefix", "deep", "the deep sea", False),
        ("prefix", "", "x", True),
        ("prefix", "", 1, False),
        ("text", "1", 1, False),
    ],
)
def test_without_a_text_index_text_is_compared_by_characters(
    kind: str, text: str, value: Any, holds: bool
) -> None:
    assert match(on("a", match={kind: text}), {"a": value}) is holds


@pytest.mark.parametrize(
    ("kind", "text", "options", "holds"),
    [
        ("text", "SEA deep", TextOptions(), True),
        ("text", "ee", TextOptions(), False),
        ("text", "", TextOptions(), False),
        ("text", "...", TextOptions(), False),
        ("phrase", "Deep Sea", TextOptions(), True),
        ("phrase", "sea deep", TextOptions(), False),
        ("text_any", "lake SEA", TextOptions(), True),
        ("text", "SEA", TextOptions(lowercase=False), False),
        ("text", "sea,", TextOptions(tokenizer="whitespace"), True),
        ("text", "se", TextOptions("prefix"), True),
        ("text", "ea", TextOptions("prefix"), False),
        ("phrase", "deep se", TextOptions("prefix"), False),
        ("text", "the", TextOptions(min_token_len=4), False),
        ("text", "deep", TextOptions(max_token_len=3), False),
        ("text", "the sea", TextOptions(stopwords=frozenset({"the"})), True),
        ("text", "cafe", TextOptions(ascii_folding=True), True),
        ("text", "cafe", TextOptions(), False),
    ],
)
def test_with_a_text_index_text_is_compared_by_its_tokens(
    kind: str, text: str, options: TextOptions, holds: bool
) -> None:
    test = compile_filter(parse(on("a", match={kind: text})), {parse_path("a"): options})
    assert test(id_key(1), {"a": "The deep sea, café"}, ()) is holds


def test_a_text_index_below_a_nested_path_counts_inside_the_nested_filter() -> None:
    nested = {"must": {"nested": {"key": "l", "filter": on("t", match={"text": "SEA"})}}}
    payload = {"l": [{"t": "deep sea"}]}
    assert not compile_filter(parse(nested))(id_key(1), payload, ())
    assert compile_filter(parse(nested), {parse_path("l[].t"): TextOptions()})(id_key(1), payload, ())


@pytest.mark.parametrize(
    ("bounds", "value", "holds"),
    [
        ({"gte": 1, "lt": 3}, 1, True),
        ({"gte": 1, "lt": 3}, 3, False),
        ({"gt": 1}, 1.5, True),
        ({"gt": 0}, True, False),
        ({"gt": 0}, "1", False),
        ({"gte": 1, "lte": 1}, 1.0, True),
        ({"gt": 5, "lt": 2}, [1, 9], False),
        ({}, 1, True),
        ({}, None, False),
        ({"gte": "2024-01-01"}, "2024-01-01T00:00:00Z", True),
        ({"gt": "2024-01-01"}, "2024-01-01", False),
        ({"lt": "2024-01-01T02:00:00+02:00"}, "2023-12-31 23:59:59.999999", True),
        ({"gte": "2024-01-01"}, 1_704_067_200, False),
        ({"gte": "2024-01-01"}, "soon", False),
        ({"gte": "2024-01-01"}, ["soon", "2025-01-01"], True),
    ],
)
def test_ranges_are_of_numbers_or_of_datetimes(bounds: dict[str, Any], value: Any, holds: bool) -> None:
    assert match(on("a", range=bounds), {"a": value}) is holds


BERLIN, POTSDAM = {"lat": 52.52, "lon": 13.405}, {"lat": 52.39, "lon": 13.06}


@pytest.mark.parametrize(
    ("radius", "value", "holds"),
    [
        (28_000, POTSDAM, True),
        (27_000, POTSDAM, False),
        (0, BERLIN, False),
        (1, BERLIN, True),
        (1e9, {"lat": "52", "lon": 13}, False),
        (1e9, {"lat": 52}, False),
        (1e9, {"lat": True, "lon": True}, False),
        (28_000, [{"lat": 0, "lon": 0}, POTSDAM], True),
        (1e9, "52,13", False),
    ],
)
def test_a_radius_is_in_metres_and_excludes_its_edge(radius: float, value: Any, holds: bool) -> None:
    assert match(on("a", geo_radius={"center": BERLIN, "radius": radius}), {"a": value}) is holds


@pytest.mark.parametrize(
    ("left", "right", "lon", "holds"),
    [
        (0, 10, 5, True),
        (0, 10, 10, False),
        (170, -170, 180, True),
        (170, -170, 0, False),
        (170, -170, -170, False),
    ],
)
def test_a_box_may_cross_the_antimeridian(left: float, right: float, lon: float, holds: bool) -> None:
    box = {"top_left": {"lat": 10, "lon": left}, "bottom_right": {"lat": -10, "lon": right}}
    assert match(on("a", geo_bounding_box=box), {"a": {"lat": 1, "lon": lon}}) is holds


SQUARE = [{"lat": y, "lon": x} for x, y in ((0, 0), (10, 0), (10, 10), (0, 10), (0, 0))]
HOLE = [{"lat": y, "lon": x} for x, y in ((4, 4), (6, 4), (6, 6), (4, 6), (4, 4))]


@pytest.mark.parametrize(
    ("lat", "lon", "holds"),
    [
        (2, 2, True),
        (5, 5, False),
        (4, 5, False),
        (0, 5, False),
        (10, 10, False),
        (11, 5, False),
        (5, 3.9, True),
    ],
)
def test_a_polygon_excludes_its_edge_and_its_holes_with_theirs(lat: float, lon: float, holds: bool) -> None:
    polygon = {"exterior": {"points": SQUARE}, "interiors": [{"points": HOLE}]}
    assert match(on("a", geo_polygon=polygon), {"a": {"lat": lat, "lon": lon}}) is holds


@pytest.mark.parametrize(
    ("bounds", "payload", "holds"),
    [
        ({"gte": 2}, {"a": [1, 2]}, True),
        ({"gte": 2}, {"a": 1}, False),
        ({"gte": 1}, {"a": 1}, True),
        ({"lt": 1}, {"a": None}, True),
        ({"lt": 1}, {"a": []}, True),
        ({"lt": 1}, {}, True),
        ({"gt": 0}, {"a": {"b": 1}}, True),
        ({"gt": 1, "lt": 3}, {"a": [1]}, False),
    ],
)
def test_values_count_is_the_length_of_a_list(
    bounds: dict[str, int], payload: dict[str, Any], holds: bool
) -> None:
    assert match(on("a", values_count=bounds), payload) is holds


def test_one_list_meets_all_bounds_of_values_count() -> None:
    payload = {"l": [{"a": []}, {"a": [1, 2, 3]}]}
    assert not match(on("l[].a", values_count={"gt": 0, "lt": 3}), payload)


@pytest.mark.parametrize(
    ("payload", "empty", "null"),
    [
        ({}, True, False),
        ({"a": None}, True, True),
        ({"a": []}, True, False),
        ({"a": [None]}, False, False),
        ({"a": 0}, False, False),
        ({"a": ""}, False, False),
        ({"a": {}}, False, False),
    ],
)
def test_a_missing_key_is_empty_but_not_null(payload: dict[str, Any], empty: bool, null: bool) -> None:
    assert match({"must": {"is_empty": {"key": "a"}}}, payload) is empty
    assert match({"must": {"is_null": {"key": "a"}}}, payload) is null
    assert match(on("a", is_empty=True), payload) is empty
    assert match(on("a", is_empty=False), payload) is not empty
    assert match(on("a", is_null=False), payload) is not null


@pytest.mark.parametrize("spelling", [ID, ID.upper(), ID.replace("-", ""), f"urn:uuid:{ID}", f"{{{ID}}}"])
def test_has_id_takes_any_spelling_of_a_uuid(spelling: str) -> None:
    assert match({"must": {"has_id": [7, spelling]}}, {}, ID)
    assert not match({"must": {"has_id": [7, spelling]}}, {}, 8)


def test_has_vector_names_the_default_vector_by_an_empty_name() -> None:
    assert match({"must": {"has_vector": ""}}, {}, vectors=("",))
    assert not match({"must": {"has_vector": "image"}}, {}, vectors=("",))


def test_slices_split_all_points_between_them() -> None:
    found = [
        [i for i in range(100) if match({"must": {"slice": {"total": 3, "index": s}}}, {}, i)]
        for s in range(3)
    ]
    assert sorted(i for one in found for i in one) == list(range(100))
    assert all(20 < len(one) < 50 for one in found)


@pytest.mark.parametrize("key", ["l", "l[]"])
def test_one_element_meets_all_of_a_nested_filter(key: str) -> None:
    both = {"must": [{"key": "x", "match": {"value": 1}}, {"key": "y", "match": {"value": 2}}]}
    nested = {"must": {"nested": {"key": key, "filter": both}}}
    assert match(nested, {"l": [{"x": 0}, {"x": 1, "y": 2}]})
    assert not match(nested, {"l": [{"x": 1}, {"y": 2}]})
    assert not match(nested, {"l": {"x": 1, "y": 2}})
    assert not match(nested, {"l": [[{"x": 1, "y": 2}]]})


def test_inside_nested_nothing_holds_about_the_point_itself() -> None:
    for about_the_point in ({"has_id": [1]}, {"has_vector": ""}, {"slice": {"total": 1, "index": 0}}):
        nested = {"nested": {"key": "l", "filter": {"must": about_the_point}}}
        assert not match({"must": nested}, {"l": [{}]}, 1, ("",))


@pytest.mark.parametrize(
    "filter_",
    [{}, {"must": []}, {"should": []}, {"must_not": []}, {"must": None}, {"must": [{}]}, {"should": {}}],
)
def test_an_empty_clause_restricts_nothing(filter_: Any) -> None:
    assert match(filter_, {})


def test_all_clauses_hold_together() -> None:
    a, b, c = ({"key": key, "match": {"value": 1}} for key in "abc")
    filter_ = {"must": a, "should": [b, c], "must_not": [{"key": "d", "match": {"value": 1}}]}
    assert match(filter_, {"a": 1, "c": 1})
    assert not match(filter_, {"a": 1})
    assert not match(filter_, {"c": 1})
    assert not match(filter_, {"a": 1, "b": 1, "d": 1})


@pytest.mark.parametrize(("count", "holds"), [(1, True), (2, True), (3, False)])
def test_min_should_counts(count: int, holds: bool) -> None:
    conditions = [{"key": key, "match": {"value": 1}} for key in "abc"]
    assert match({"min_should": {"conditions": conditions, "min_count": count}}, {"a": 1, "c": 1}) is holds


def test_of_several_tests_in_one_condition_any_suffices() -> None:
    condition = on("a", match={"value": 1}, range={"gt": 5})
    assert match(condition, {"a": 1})
    assert match(condition, {"a": 6})
    assert not match(condition, {"a": 2})


@pytest.mark.parametrize(
    ("filter_", "error", "says"),
    [
        (on("a"), Unprocessable, "'a'"),
        ({"must_not": on("a")}, Unprocessable, "'a'"),
        (on("a", match={}), BadRequest, "value, any, except"),
        (on("a", match={"value": 1.5}), BadRequest, "match.value"),
        (on("a", match={"any": ["a", 1]}), BadRequest, "all strings or all integers"),
        (on("a", match={"value": 1, "text": "x"}), BadRequest, "value and text"),
        (on("a", range={"gt": 1, "lt": "2024-01-01"}), BadRequest, "all numbers or all datetimes"),
        (on("a", range={"gt": "soon"}), BadRequest, "'soon'"),
        (on("a", geo_radius={"center": {"lat": 91, "lon": 0}, "radius": 1}), BadRequest, "lat 91"),
        (on("a", geo_polygon={"exterior": {"points": SQUARE[:3]}}), BadRequest, "at least 4"),
        (on("a", geo_polygon={"exterior": {"points": SQUARE[:4]}}), BadRequest, "last point"),
        (on("a..b", match={"value": 1}), BadRequest, "a..b"),
        ({"must": {"match": {"value": 1}}}, BadRequest, "needs a `key`"),
        ({"must": {"has_id": ["x"]}}, BadRequest, "'x'"),
        ({"must": {"slice": {"total": 0, "index": 0}}}, Unprocessable, "slice.total"),
        ({"must": {"slice": {"total": 2, "index": 2}}}, Unprocessable, "slice.index"),
        ({"min_should": {"conditions": [], "min_count": 0}}, Unprocessable, "min_count"),
        ({"musst": []}, BadRequest, "musst"),
        ({"must": [{"musst": []}]}, BadRequest, "musst"),
        ({"must": {"key": "a", "is_empty": {"key": "a"}}}, BadRequest, "is_empty"),
    ],
)
def test_a_wrong_filter_is_refused_and_its_field_named(
    filter_: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        parse(filter_)
    assert says in str(caught.value)
    assert len(str(caught.value)) <= 200


def test_depth_and_size_of_a_filter_are_bounded() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"must": deep}
    with pytest.raises(BadRequest, match="levels deep"):
        parse(deep)
    wide = {"should": [on("a", match={"value": i})["must"] for i in range(11)]}
    with pytest.raises(BadRequest, match="more than 10 conditions"):
        parse(wide, Limits(filter_conditions_max=10))


@pytest.mark.parametrize("other", [True, "1", 2])
def test_conditions_are_equal_only_if_they_match_the_same(other: str | int | bool) -> None:
    path = parse_path("a")
    assert MatchValue(path, 1) != MatchValue(path, other)
    assert len({MatchValue(path, 1), MatchValue(path, other), MatchValue(path, 1)}) == 2
