"""Payload indexes as columns: exactly what the evaluator says, whatever type the index has."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.columns.layout import LAYOUTS
from agent.columns.reader import ColumnReader
from agent.columns.writer import ColumnWriter
from agent.front.bitmaps import Bitmaps
from agent.store.apply import Committed
from agent.store.files import Files
from agent.store.manifest import ColumnParams
from core.api.decode import decode
from core.api.filters import FilterBody, parse_filter
from core.filters import FieldCondition, Filter, HasId, MatchValue, NumberRange
from core.hashing import IdKey, id_key
from core.payload import parse_path
from core.wire import Delete, SetPayload
from tests.unit.naive_filters import (
    ALL_PATHS,
    PATHS,
    Point,
    holds,
    random_filter,
    random_payload,
    random_point,
)
from tests.unit.read_shards import Written, schema, written_shard

TYPES = tuple(LAYOUTS)
FILTERS = 250
OWN = {path: kind for kind, paths in PATHS.items() for path in paths}


def rotated(by: int) -> dict[str, str]:
    """Every path indexed, as another type than its values mostly are."""
    return {path: TYPES[(n + by) % len(TYPES)] for n, path in enumerate(ALL_PATHS)}


def _name(columns: dict[str, str]) -> str:
    return "no index" if not columns else f"color as {columns['color']}"


async def check_filters(shard: Written, points: Mapping[IdKey, Point], rng: random.Random) -> None:
    look = shard.reader.view()
    for number in range(FILTERS):
        raw = random_filter(rng)
        body = decode(FilterBody, json.dumps(raw).encode())
        found = set(look.keys(look.scan(parse_filter(body) or Filter())))
        texts = {path: {"tokenizer": "word"} for path in shard.texts}
        expected = {key for key, point in points.items() if holds(raw, point, texts)}
        wrong = [points[IdKey(key)] for key in found ^ expected]
        assert not wrong, f"filter {number}: {json.dumps(raw)}, {wrong}"


@pytest.mark.parametrize("columns", [OWN, {}, *(rotated(by) for by in range(len(TYPES)))], ids=_name)
async def test_random_filters_agree_with_the_naive_evaluator(tmp_path: Path, columns: dict[str, str]) -> None:
    rng = random.Random(11)
    points = {id_key(p.id): p for p in (random_point(rng, n) for n in range(80))}
    async with written_shard(tmp_path / "1-0", schema(columns=columns), names={"": 0}) as shard:
        points = {key: replace(p, vectors=frozenset({""})) for key, p in points.items()}
        ids, payloads = [p.id for p in points.values()], [p.payload for p in points.values()]
        await shard.upsert(ids, rows(len(ids)), payloads)
        await check_filters(shard, points, rng)
        for key in rng.sample(sorted(points), 30):  # edits, in place
            points[key] = replace(points[key], payload=random_payload(rng))
            await shard.overwrite([points[key].id], points[key].payload)
        for key in rng.sample(sorted(points), 10):
            await shard.delete([points.pop(key).id])
        for key in rng.sample(sorted(points), 10):  # new slots
            points[key] = replace(points[key], payload=random_payload(rng))
            await shard.upsert([points[key].id], rows(1), [points[key].payload])
        await check_filters(shard, points, rng)


def rows(count: int) -> Any:
    return np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32)


async def test_an_indexed_field_is_not_looked_up_in_payloads(tmp_path: Path) -> None:
    columns = {"color": "keyword", "n": "integer", "tags": "keyword"}
    async with written_shard(tmp_path / "1-0", schema(columns=columns)) as shard:
        payloads = [{"color": f"c{n % 7}", "n": n, "tags": ["a", f"t{n % 5}"]} for n in range(200)]
        await shard.upsert(range(200), rows(200), payloads)
        shard.reader.points.close()
        shard.reader.bitmaps = bitmaps = Bitmaps(tmp_path / "1-0", _NoRows(), None)  # type: ignore[arg-type]
        bitmaps.take_columns(shard.reader.manifest.columns)
        look = shard.reader.view()
        wanted: list[tuple[FieldCondition, int]] = [
            (MatchValue(parse_path("color"), "c3"), 29), (MatchValue(parse_path("tags"), "t2"), 40),
            (MatchValue(parse_path("color"), "none"), 0), (NumberRange(parse_path("n"), gte=10, lt=20.5), 11),
        ]  # fmt: skip
        for condition, count in wanted:
            assert look.count(Filter(must=(condition,))) == count
            assert look.count(Filter(must_not=(condition,))) == 200 - count


class _NoRows:
    """Payloads that must not be read."""


async def test_a_filter_by_id_finds_the_point_of_the_look(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema()) as shard:
        await shard.upsert(range(50), rows(50))
        look = shard.reader.view()
        wanted = Filter(must=(HasId(frozenset([id_key(7), id_key(8), id_key(999)])),))
        assert look.keys(look.scan(wanted)) == [id_key(7), id_key(8)]
        await shard.upsert([7], rows(1))
        assert look.scan(wanted).tolist() == [7, 8]
        assert shard.reader.view().scan(wanted).tolist() == [8, 50]


def column(folder: Path, kind: str, path: str = "f") -> tuple[ColumnWriter, ColumnReader]:
    (folder / "columns").mkdir(exist_ok=True)
    params = ColumnParams(path, kind)
    return ColumnWriter(folder, 1, params, Files()), ColumnReader(folder / "columns", 1, params)


def matching(reader: ColumnReader, value: Any, high: int) -> list[int]:
    yes, maybe = reader.mask(MatchValue(parse_path("f"), value), 0, high)
    assert yes.tolist() == maybe.tolist()
    return np.flatnonzero(yes).tolist()


def test_slots_put_twice_hold_what_was_put_last(tmp_path: Path) -> None:
    writer, reader = column(tmp_path, "keyword")
    writer.put(np.arange(3), [{"f": ["a", "b"]}, {"f": "a"}, {"f": ["b", "a"]}])
    writer.put(np.arange(3), [{"f": "b"}, {"f": ["b", "c"]}, {}])
    assert matching(reader, "a", 3) == []
    assert matching(reader, "b", 3) == [0, 1]
    assert matching(reader, "c", 3) == [1]


def test_a_column_opened_again_goes_on_with_its_words(tmp_path: Path) -> None:
    writer, reader = column(tmp_path, "keyword")
    writer.put(np.arange(2), [{"f": "sea"}, {"f": ["deep", "sea"]}])
    writer.close()
    writer, _ = column(tmp_path, "keyword")
    writer.put(np.arange(2, 4), [{"f": "deep"}, {"f": ["sea", "blue", ""]}])
    assert matching(reader, "sea", 4) == [0, 1, 3]
    assert matching(reader, "deep", 4) == [1, 2]
    assert matching(reader, "", 4) == [3]
    assert reader.filled(0, 4).all()


def test_a_column_that_was_reset_is_filled_anew(tmp_path: Path) -> None:
    writer, _ = column(tmp_path, "keyword")
    writer.put(np.arange(2), [{"f": "sea"}, {"f": ["deep", "sea"]}])
    writer.reset()
    writer.put(np.arange(2), [{"f": ["blue", "red"]}, {"f": "sea"}])
    _, reader = column(tmp_path, "keyword")
    assert matching(reader, "sea", 2) == [1]
    assert matching(reader, "deep", 2) == []
    assert matching(reader, "blue", 2) == [0]


def test_space_of_dead_slots_is_given_back_and_the_rest_stays(tmp_path: Path) -> None:
    writer, reader = column(tmp_path, "keyword")
    count = 60_000
    for low in range(0, count, 6_000):
        slots = np.arange(low, low + 6_000)
        writer.put(slots, [{"f": ["even" if n % 2 == 0 else "odd", "all"]} for n in slots.tolist()])
    blocks = sum(path.stat().st_blocks for path in writer.paths())
    writer.punch_below(count - 100)
    assert sum(path.stat().st_blocks for path in writer.paths()) < blocks / 4
    yes, _ = reader.mask(MatchValue(parse_path("f"), "even"), count - 100, count)
    assert np.flatnonzero(yes).tolist() == list(range(0, 100, 2))


async def test_an_edit_by_filter_reads_only_what_its_columns_leave(tmp_path: Path) -> None:
    columns = {"color": "keyword", "tags": "keyword"}
    red = b'{"must":[{"key":"color","match":{"value":"red"}}]}'
    async with written_shard(tmp_path / "1-0", schema(columns=columns)) as shard:
        await shard.upsert(range(300), rows(300), [{"color": f"c{n % 7}"} for n in range(300)])
        await shard.overwrite([7, 8], {"color": "red"})
        applier = shard.shard._applier
        possible = applier._possible_slots(red)
        assert possible is not None
        assert possible.tolist() == [7, 8]
        # In one transaction: what the first operation made red is what the second one deletes.
        wanted = b'{"must":[{"key":"color","match":{"value":"c3"}}]}'
        outcomes = applier.apply(
            [
                Committed(applier.points.meta.applied + 1, SetPayload(b"", wanted, b'{"color":"red"}', None)),
                Committed(applier.points.meta.applied + 2, Delete(b"", red)),
            ]
        )
        assert [outcome.touched for outcome in outcomes] == [43, 45]
        assert shard.reader.view().count(None) == 255
