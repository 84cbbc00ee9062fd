"""The filter evaluator agrees with a naive one, and with the local mode of qdrant-client."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from core.api.decode import decode
from core.api.filters import FilterBody, filter_json, parse_filter, read_filter
from core.api.indexes import text_options
from core.filters import Filter, compile_filter
from core.hashing import id_key
from core.payload import parse_path
from tests.unit.naive_filters import Point, holds, random_filter, random_point

TEXTS: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "tokenizer": "word"},
    "o.text": {"type": "text", "tokenizer": "whitespace", "lowercase": False, "min_token_len": 2},
    "l[].text": {"type": "text", "tokenizer": "prefix", "max_token_len": 3},
}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("texts", [{}, TEXTS], ids=["no text index", "text indexes"])
def test_a_thousand_random_points_and_filters_agree_with_the_naive_evaluator(
    seed: int, texts: dict[str, dict[str, Any]]
) -> None:
    rng = random.Random(seed)
    indexes = {parse_path(path): text_options(params) for path, params in texts.items()}
    matched = 0
    for number in range(1_000):
        point, filter_ = random_point(rng, number % 20), random_filter(rng)
        body = decode(FilterBody, json.dumps(filter_).encode())
        test = compile_filter(parse_filter(body) or Filter(), indexes)
        found = test(id_key(point.id), point.payload, point.vectors)
        expected = holds(filter_, point, texts)
        matched += expected
        assert found == expected, f"seed {seed}, pair {number}: {json.dumps(filter_)} on {point}"
    assert 200 < matched < 900, "the random filters are no longer a test"


def test_a_filter_kept_as_json_reads_back_as_the_same_filter() -> None:
    rng = random.Random(1)
    for _ in range(500):
        body = decode(FilterBody, json.dumps(random_filter(rng)).encode())
        kept = filter_json(body)
        assert kept is not None
        assert read_filter(kept) == (parse_filter(body) or Filter())


@pytest.mark.compat
def test_random_filters_agree_with_local_mode() -> None:
    models = pytest.importorskip("qdrant_client.models")
    local = pytest.importorskip("qdrant_client.local.payload_filters")
    rng = random.Random(7)
    compared = 0
    for number in range(3_000):
        point, filter_ = random_point(rng, number % 20), random_filter(rng)
        if not _local_mode_means_the_same(filter_, point):
            continue
        compared += 1
        parsed = models.Filter.model_validate(filter_)
        expected = local.check_filter(parsed, point.payload, point.id, dict.fromkeys(point.vectors, True))
        body = decode(FilterBody, json.dumps(filter_).encode())
        test = compile_filter(parse_filter(body) or Filter())
        assert test(id_key(point.id), point.payload, point.vectors) == expected, f"{filter_} on {point}"
    assert compared > 1_000


def _local_mode_means_the_same(filter_: dict[str, Any], point: Point) -> bool:
    """Not text, which local mode cuts into words; not `[null]`, which is null there; one test a condition."""
    text = json.dumps(filter_)
    if '"text' in text or '"phrase"' in text:
        return False
    if '"is_null"' in text and "null" in json.dumps(point.payload):
        return False
    return _one_test_each(filter_)


def _one_test_each(node: Any) -> bool:
    if isinstance(node, list):
        return all(_one_test_each(one) for one in node)
    if not isinstance(node, dict):
        return True
    if isinstance(node.get("key"), str) and len(node) > 2:
        return False
    return all(_one_test_each(one) for one in node.values())
