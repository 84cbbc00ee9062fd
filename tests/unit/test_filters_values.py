"""Datetimes, tokens, hashes and shapes, as filters use them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.datetimes import format_datetime, parse_datetime
from core.geo import GeoPoint, distance_m, geo_point
from core.hashing import id_key
from core.siphash import siphash24, slice_of
from core.tokens import TextOptions, Tokenizer, query_tokens_of, tokens_of

NEW_YEAR_US = 1_704_067_200_000_000


@pytest.mark.parametrize(
    ("text", "after_new_year_us"),
    [
        ("2024-01-01", 0),
        ("2024-01-01T00:00", 0),
        ("2024-01-01 00:00:00", 0),
        ("2024-01-01T00:00:00Z", 0),
        ("2024-01-01T00:00:00z", 0),
        ("  2024-01-01T00:00:00Z", 0),
        ("2024-01-01 00:00:00 UTC", 0),
        ("2024-01-01T01:00:00+01:00", 0),
        ("2024-01-01T01:00:00+0100", 0),
        ("2024-01-01T01:00:00+01", 0),
        ("2023-12-31T19:00:00 -05:00", 0),
        ("2024-01-01T00:00:00.5", 500_000),
        ("2024-01-01T00:00:00.123456789Z", 123_456),
        ("2024-01-01T00:00:01", 1_000_000),
    ],
)
def test_a_datetime_has_many_spellings(text: str, after_new_year_us: int) -> None:
    assert parse_datetime(text) == NEW_YEAR_US + after_new_year_us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2024",
        "2024-13-01",
        "2024-02-30",
        "2024-01-01T25:00",
        "2024-01-01T12",
        "2024-01-01T00:00:00+99",
        "2024-01-01Z ",
        "20240101",
        "2024-01-01T00:00:00+01:60",
        "٢٠٢٤-01-01",
    ],
)
def test_what_is_no_datetime_is_none(text: str) -> None:
    assert parse_datetime(text) is None


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_a_datetime_reads_back(micros: int) -> None:
    assert parse_datetime(format_datetime(micros)) == micros


@pytest.mark.compat
def test_datetimes_agree_with_local_mode() -> None:
    local = pytest.importorskip("qdrant_client.local.datetime_utils")
    order = pytest.importorskip("qdrant_client.local.order_by")
    rng = random.Random(3)
    parts = (
        "2024-02-29",
        "2023-02-29",
        "T",
        " ",
        "12:30",
        "12:30:15",
        ".5",
        ".1234567",
        "Z",
        "+01",
        "-0230",
        "+05:30",
    )
    for _ in range(3_000):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(1, 5)))
        theirs = local.parse(text)
        expected = None if theirs is None else order.datetime_to_microseconds(theirs)
        assert parse_datetime(text) == expected, text


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 0x726FDB47DD0E0E31), (1, 0x74F839C593DC67FD), (15, 0xA129CA6149BE45E5)]
)
def test_siphash_gives_the_values_of_its_paper(length: int, expected: int) -> None:
    assert siphash24(bytes(range(length)), key=bytes(range(16))) == expected


@pytest.mark.compat
def test_slices_agree_with_local_mode() -> None:
    local = pytest.importorskip("qdrant_client.local.siphash")
    for id_ in (
        0,
        1,
        2**64 - 1,
        "00000000-0000-0000-0000-00000000000c",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
    ):
        assert slice_of(id_key(id_), 1_000) == local.point_id_slice(id_, 1_000)


@pytest.mark.parametrize(
    ("text", "options", "tokens"),
    [
        ("The deep-sea, 3rd", TextOptions(), ["the", "deep", "sea", "3rd"]),
        ("a_b", TextOptions(), ["a", "b"]),
        ("deep-sea X", TextOptions("whitespace"), ["deep-sea", "x"]),
        ("abc d", TextOptions("prefix"), ["a", "ab", "abc", "d"]),
        ("abc d", TextOptions("prefix", min_token_len=2), ["ab", "abc"]),
        ("Über", TextOptions("multilingual", ascii_folding=True), ["uber"]),
        ("", TextOptions(), []),
    ],
)
def test_a_tokenizer_cuts_text(text: str, options: TextOptions, tokens: list[str]) -> None:
    assert tokens_of(text, options) == tokens


def test_a_query_is_a_prefix_itself_and_is_not_cut_into_prefixes() -> None:
    assert query_tokens_of("abcd", TextOptions("prefix", max_token_len=3)) == ["abc"]


def test_distances_are_those_of_a_sphere() -> None:
    quarter = 6_371_008.8 * 3.141592653589793 / 2
    assert distance_m(GeoPoint(0, 0), GeoPoint(90, 0)) == pytest.approx(quarter)
    assert distance_m(GeoPoint(0, 179), GeoPoint(0, -179)) == pytest.approx(quarter / 45)
    assert distance_m(GeoPoint(0, 0), GeoPoint(0, 180)) == pytest.approx(2 * quarter)


@pytest.mark.parametrize("value", [None, [], {"lat": 1}, {"lat": 1, "lon": None}, {"lat": 10**400, "lon": 1}])
def test_what_is_no_point_on_the_globe_is_none(value: object) -> None:
    assert geo_point(value) is None


@pytest.mark.parametrize("tokenizer", ["word", "whitespace", "multilingual"])
@pytest.mark.parametrize("lowercase", [True, False])
@given(text=st.text(st.characters(max_codepoint=127)))
def test_ascii_is_cut_as_any_text(tokenizer: Tokenizer, lowercase: bool, text: str) -> None:
    plain = TextOptions(tokenizer, lowercase=lowercase)
    bounded = TextOptions(tokenizer, lowercase=lowercase, min_token_len=0)  # all tokens, the longer way
    assert tokens_of(text, plain) == tokens_of(text, bounded)
