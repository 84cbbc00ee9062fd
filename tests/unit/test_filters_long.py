"""Filters of thousands of conditions: the same answers, in little time and memory, within the deadline."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import DeadlineExceeded
from core.filters import (
    JOIN_CONDITIONS_MIN,
    Condition,
    Filter,
    HasId,
    MatchValue,
    MinShould,
    NumberRange,
    compile_filter,
    conditions_in,
    joined,
)
from core.hashing import id_key
from core.payload import parse_path
from tests.unit.read_shards import schema, written_shard

PATHS = tuple(parse_path(text) for text in ("a", "b", "c.d"))
VALUES: tuple[Any, ...] = (1, 0, True, False, "1", "x", "", 1.0, None, [1, "x"], [], {"d": 1}, [True])


def _condition(rng: random.Random) -> Condition:
    if rng.random() < 0.2:
        return HasId(frozenset(id_key(n) for n in rng.sample(range(9), rng.randrange(3))))
    if rng.random() < 0.2:
        return NumberRange(rng.choice(PATHS), gte=float(rng.randrange(3)))
    return MatchValue(rng.choice(PATHS), rng.choice((1, 0, 7, True, False, "1", "x", "")))


def _filter(rng: random.Random, depth: int = 0) -> Filter:
    def some() -> tuple[Condition, ...]:
        count = rng.choice((0, 1, 3, JOIN_CONDITIONS_MIN, 12))
        found = [_condition(rng) for _ in range(count)]
        if depth < 2 and rng.random() < 0.5:
            found.append(_filter(rng, depth + 1))
        return tuple(found)

    least = MinShould(some(), rng.randrange(1, 4)) if rng.random() < 0.3 else None
    return Filter(must=some()[:1], should=some(), must_not=some()[:1] or some(), min_should=least)


@pytest.mark.parametrize("seed", range(20))
def test_joined_conditions_hold_for_the_same_points(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        where = _filter(rng)
        plain = _one_by_one(where)
        test = compile_filter(where)
        for number in range(9):
            payload = {"a": rng.choice(VALUES), "b": rng.choice(VALUES), "c": rng.choice(VALUES)}
            key = id_key(number)
            assert test(key, payload, ()) is plain(key, payload), (where, payload)


def _one_by_one(where: Filter) -> Callable[[bytes, dict[str, Any]], bool]:
    def holds(condition: Condition, key: bytes, payload: dict[str, Any]) -> bool:
        if isinstance(condition, Filter):
            return _one_by_one(condition)(key, payload)
        return compile_filter(Filter(must=(condition,)))(key, payload, ())

    def test(key: bytes, payload: dict[str, Any]) -> bool:
        least = where.min_should
        return (
            all(holds(c, key, payload) for c in where.must)
            and not any(holds(c, key, payload) for c in where.must_not)
            and (not where.should or any(holds(c, key, payload) for c in where.should))
            and (least is None or sum(holds(c, key, payload) for c in least.conditions) >= least.min_count)
        )

    return test


def test_thousands_of_alternatives_become_one() -> None:
    path = parse_path("n")
    either = Filter(should=tuple(MatchValue(path, n) for n in range(20_000)))
    none = Filter(must_not=tuple(HasId(frozenset([id_key(n)])) for n in range(20_000)))
    nested = Filter(must=(either, none))
    assert len(list(conditions_in(joined(either)))) == len(list(conditions_in(joined(none)))) == 1
    assert len(list(conditions_in(joined(nested)))) == 4


def test_a_few_alternatives_stay_as_they_are() -> None:
    where = Filter(should=tuple(MatchValue(parse_path("n"), n) for n in range(3)))
    assert joined(where) is where


def test_alternatives_that_name_no_id_still_match_nothing() -> None:
    where = Filter(should=(HasId(frozenset()),) * JOIN_CONDITIONS_MIN)
    assert not compile_filter(where)(id_key(1), {}, ())


def _ranges(count: int) -> Filter:
    """Of conditions that can't be joined."""
    return Filter(should=tuple(NumberRange(parse_path("n"), gte=n + 0.5, lt=n + 0.6) for n in range(count)))


@pytest.mark.parametrize("columns", [{}, {"n": "integer"}], ids=["scanned", "indexed"])
async def test_a_filter_stops_at_the_deadline(tmp_path: Path, columns: dict[str, str]) -> None:
    async with written_shard(tmp_path / "1-0", schema(columns=columns)) as shard:
        await shard.upsert(range(2000), _rows(2000), [{"n": n} for n in range(2000)])
        look, asked = shard.reader.view(), 0

        def check() -> None:
            nonlocal asked
            asked += 1
            if asked > 3:
                raise DeadlineExceeded("too late")

        look.heed(check)
        with pytest.raises(DeadlineExceeded):
            look.count(_ranges(2000))
        assert asked == 4


async def test_answers_of_many_conditions_are_not_in_memory_at_once(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema(columns={"n": "integer"})) as shard:
        await shard.upsert(range(5000), _rows(5000), [{"n": n} for n in range(5000)])
        look = shard.reader.view()
        assert look.count(_ranges(1)) == 0  # what is read once is in memory by now
        tracemalloc.start()
        try:
            assert look.count(_ranges(2000)) == 0
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 4 << 20  # 2,000 answers of 5,000 bytes, twice, would be 20 MB


def _rows(count: int) -> Any:
    return np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32)
