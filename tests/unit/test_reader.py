"""A shard as searches see it: exact and graph searches, live points only, in the order of scores and ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.front.view import LookTooOld
from agent.page import ShardFlag
from core.api.config import Distance
from core.errors import Damaged, Unavailable
from core.filters import Filter, MatchValue
from core.hashing import id_key
from core.payload import parse_path
from tests.unit.read_shards import F32, schema, written_shard


def unit_rows(count: int, dim: int, seed: int = 1) -> F32:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


async def test_a_search_finds_the_nearest_of_the_tail(tmp_path: Path) -> None:
    rows = unit_rows(500, 8)
    async with written_shard(tmp_path / "1-0", schema()) as shard:
        await shard.upsert(range(500), rows)
        look = shard.reader.view()
        [(slots, scores)] = look.nearest(0, rows[7:8], limit=5, ef=None, exact=False, where=None)
        expected = np.argsort(-(rows @ rows[7]))[:5]
        assert [look.keys(slots)[i] for i in range(5)] == [id_key(int(i)) for i in expected]
        assert scores == pytest.approx((rows @ rows[7])[expected], abs=1e-6)


async def test_deleted_and_replaced_points_are_not_found(tmp_path: Path) -> None:
    rows = unit_rows(100, 8)
    async with written_shard(tmp_path / "1-0", schema()) as shard:
        await shard.upsert(range(100), rows)
        await shard.delete([3])
        await shard.upsert([4], -rows[4:5])
        look = shard.reader.view()
        slots = np.empty(0, np.int64)
        for i in (3, 4):
            [(slots, _)] = look.nearest(0, rows[i : i + 1], limit=100, ef=None, exact=False, where=None)
            assert len(slots) == 99
            assert id_key(3) not in look.keys(slots)
            assert look.keys(slots)[-1 if i == 4 else 0] != id_key(3)
        assert look.keys(slots)[-1] == id_key(4)
        assert look.count(None) == 99
        assert look.slots([id_key(3), id_key(4)]).tolist() == [-1, 100]


@pytest.mark.parametrize("distance", list(Distance))
async def test_exact_scores_are_those_of_the_metric(tmp_path: Path, distance: Distance) -> None:
    rows = np.random.default_rng(2).standard_normal((300, 16)).astype(np.float32) + 50
    query = rows[5:6] + 1
    differences = rows.astype(np.float64) - query
    s = {
        Distance.COSINE: (rows.astype(np.float64) @ query[0]),
        Distance.DOT: (rows.astype(np.float64) @ query[0]),
        Distance.EUCLID: -(differences**2).sum(axis=1),
        Distance.MANHATTAN: -np.abs(differences).sum(axis=1),
    }[distance]
    async with written_shard(tmp_path / "1-0", schema(dim=16, distance=distance)) as shard:
        await shard.upsert(range(300), rows)
        for exact in (True, False):
            look = shard.reader.view()
            [(slots, scores)] = look.nearest(0, query, limit=20, ef=None, exact=exact, where=None)
            assert scores == pytest.approx(np.sort(s)[::-1][:20], rel=1e-5)
            assert scores.tolist() == pytest.approx(s[slots].tolist(), rel=1e-5)


async def test_a_version_is_that_of_the_last_write_also_when_it_was_looked_up_before(tmp_path: Path) -> None:
    rows = unit_rows(10, 8)
    async with written_shard(tmp_path / "1-0", schema()) as shard:

        def versions(ids: list[int]) -> list[int]:
            look = shard.reader.view()
            slots = look.slots([id_key(i) for i in ids])
            # Twice: what the first reads from points.db, the second knows.
            first, second = look.seqs(slots).tolist(), shard.reader.view().seqs(slots).tolist()
            assert first == second
            return first

        await shard.upsert(range(5), rows[:5])
        assert versions([0, 1, 4]) == [1, 1, 1]
        await shard.upsert(range(5, 10), rows[5:])
        await shard.overwrite([1], {"edited": True})
        assert versions([0, 1, 4, 9]) == [1, 3, 1, 2]
        await shard.upsert([4], rows[:1])
        assert versions([4, 1]) == [4, 3]


async def test_a_dropped_index_answers_no_longer_though_graphs_are_being_opened(tmp_path: Path) -> None:
    red = Filter(must=(MatchValue(parse_path("color"), "red"),))
    async with written_shard(tmp_path / "1-0", schema(columns={"color": "keyword"})) as shard:
        await shard.upsert(range(9), unit_rows(9, 8), [{"color": "red"}] * 9)
        assert shard.reader.view().count(red) == 9
        with shard.reader._opening:
            await shard.shard.set_schema(schema())
            await shard.overwrite([1, 2], {"color": "blue"})
            assert shard.reader.view().count(red) == 7


async def test_a_place_that_is_another_shards_by_now_is_not_read_as_ours(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema()) as shard:
        await shard.upsert(range(9), unit_rows(9, 8))
        ours = shard.page.shard(0)
        shard.page.write_shard(0, ours._replace(incarnation=ours.incarnation + 1))
        with pytest.raises(Unavailable, match="not open"):
            shard.reader.view()
        shard.page.write_shard(0, ours)
        assert shard.reader.view().count(None) == 9


async def test_a_shard_that_was_found_damaged_says_so(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema()) as shard:
        shard.page.write_shard(0, shard.page.shard(0)._replace(flags=ShardFlag.DAMAGED))
        with pytest.raises(Damaged, match="restore"):
            shard.reader.view()


async def test_a_vector_without_graphs_is_scanned_whole_however_short_the_tail(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema(graph="none")) as shard:
        await shard.upsert(range(9), unit_rows(9, 8))
        await shard.shard.checkpoint()
        assert shard.page.shard(0).built == 9
        assert shard.reader.built(0) == 0


async def test_rows_of_a_reader_that_was_closed_meanwhile_are_refused_in_words(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema()) as shard:
        await shard.upsert(range(9), unit_rows(9, 8))
        look = shard.reader.view()
        shard.reader.close()
        with pytest.raises(Unavailable, match="retry"):
            look.payloads(look.scan(None))


async def test_a_payload_whose_row_was_let_go_is_not_answered_as_an_empty_one(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema(), purge_after_s=0.0) as shard:
        await shard.upsert([1], unit_rows(1, 8), [{"a": 1}])
        look = shard.reader.view()
        await shard.upsert([1], unit_rows(1, 8), [{"a": 2}])
        await shard.shard.checkpoint()
        with pytest.raises(LookTooOld, match="retry"):
            look.payloads(look.scan(None))
        fresh = shard.reader.view()
        assert fresh.payloads(fresh.scan(None)) == [b'{"a":2}']


async def test_an_older_look_still_finds_a_point_that_was_replaced(tmp_path: Path) -> None:
    red = Filter(must=(MatchValue(parse_path("color"), "red"),))
    async with written_shard(tmp_path / "1-0", schema()) as shard:
        await shard.upsert(range(9), unit_rows(9, 8), [{"color": "red"}] * 9)
        older = shard.reader.view()
        await shard.upsert([3], unit_rows(1, 8), [{"color": "red"}])
        assert shard.reader.view().count(red) == 9
        assert older.scan(red).tolist() == list(range(9))
