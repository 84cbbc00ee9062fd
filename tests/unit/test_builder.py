"""Graphs over a real shard: what is due, what the builder makes of it, and that searches find the same."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.build_jobs import Job, job_of, to_body
from agent.builder import attempt
from agent.metrics import Metrics
from agent.page import Reads
from agent.store.builds import Builds
from agent.store.manifest import GraphKind
from agent.workshop import Workshop
from core.api.config import Distance
from core.build_plan import SPAN_SLACK, BuildRules
from core.errors import Conflict
from core.hashing import id_key
from tests.unit.read_shards import F32, LOG, Written, schema, written_shard

RULES = BuildRules(start_rows=500, dead_rows_min=100)


class Site:
    """A shard with the store's planner and a builder, driven by hand."""

    def __init__(self, shard: Written, rules: BuildRules = RULES) -> None:
        self.shard = shard
        self.open = [shard.shard]
        self.builds = Builds(lambda: self.open, LOG, Metrics(memoryview(bytearray(4096))), lambda: rules)
        self.workshop = Workshop(LOG, Reads(shard.page, 2), threads=1)
        self._calls = self.builds.handlers()

    async def next(self) -> Job | None:
        _, body = await self._calls["build.next"]({}, b"", 0.0)
        return job_of(body)

    async def build_once(self) -> str | None:
        job = await self.next()
        if job is None:
            return None
        await self._calls["build.done"]({}, to_body(self.workshop.build(job)), 0.0)
        self.shard.reader.refresh()
        return job.kind


def clustered(count: int, dim: int = 24, seed: int = 3) -> F32:
    random = np.random.default_rng(seed)
    centers = random.standard_normal((40, dim))
    rows = centers[random.integers(0, 40, count)] + 0.4 * random.standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def recall(shard: Written, queries: F32, limit: int = 10) -> float:
    look = shard.reader.view()
    found = look.nearest(0, queries, limit=limit, ef=None, exact=False, where=None)
    wanted = look.nearest(0, queries, limit=limit, ef=None, exact=True, where=None)
    return float(np.mean([np.isin(a, b).mean() for (a, _), (b, _) in zip(found, wanted, strict=True)]))


async def test_the_tail_is_built_folded_and_rebuilt_when_much_of_it_is_dead(tmp_path: Path) -> None:
    rows = clustered(3000)
    async with written_shard(tmp_path / "1-0", schema(dim=24)) as shard:
        site = Site(shard)
        await shard.upsert(range(400), rows[:400])
        assert await site.next() is None
        await shard.upsert(range(400, 1000), rows[400:1000])
        assert await site.build_once() == "base"
        await shard.upsert(range(1000, 3000), rows[1000:])
        assert await site.build_once() == "fold"
        assert await site.next() is None
        [segment] = shard.reader.manifest.vectors["0"].segments
        assert (segment.low, segment.high, segment.count) == (0, 3000, 3000)
        assert recall(shard, clustered(50, seed=9)) >= 0.95
        await shard.delete(range(1000))
        assert await site.build_once() == "vacuum"
        assert recall(shard, clustered(50, seed=9)) >= 0.95
        await shard.upsert(range(400), rows[:400])
        site.builds.flag_shards()
        assert shard.reader.indexed_vectors() == 2400  # green: a short tail counts as indexed
        shard.shard.set_building(True)
        assert shard.reader.indexed_vectors() == 2000
        assert len(list((shard.folder / "segments").iterdir())) == 1


@pytest.mark.parametrize(
    ("distance", "graph"),
    [
        (Distance.COSINE, "i8"), (Distance.COSINE, "bf16"), (Distance.DOT, "i8"), (Distance.DOT, "f32"),
        (Distance.EUCLID, "bf16"), (Distance.EUCLID, "f16"),
    ],
)  # fmt: skip
async def test_each_kind_of_graph_finds_what_an_exact_search_finds(
    tmp_path: Path, distance: Distance, graph: GraphKind
) -> None:
    rows = clustered(2000)
    if distance is not Distance.COSINE:
        rows = rows * np.random.default_rng(4).uniform(0.5, 4, (2000, 1)).astype(np.float32)
    if distance is Distance.EUCLID:
        rows += 100  # far from zero: only about their mean do bf16 rows differ
    async with written_shard(tmp_path / "1-0", schema(dim=24, distance=distance, graph=graph)) as shard:
        site = Site(shard)
        await shard.upsert(range(1500), rows[:1500])
        assert await site.build_once() == "base"
        await shard.upsert(range(1500, 2000), rows[1500:])
        assert await site.build_once() == "fold"
        assert recall(shard, rows[::40] + np.float32(0.01)) >= 0.95


async def test_manhattan_has_no_graph(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema(distance=Distance.MANHATTAN, graph="bf16")) as shard:
        await shard.upsert(range(1000), clustered(1000, 8))
        assert await Site(shard).next() is None


async def test_a_base_that_takes_long_to_save_gets_a_delta_until_it_is_a_fifth(tmp_path: Path) -> None:
    rows = clustered(5000)
    rules = BuildRules(start_rows=500, dead_rows_min=100, save_s_max=0.0)
    async with written_shard(tmp_path / "1-0", schema(dim=24)) as shard:
        site = Site(shard, rules)
        kinds = []
        for high in (3000, 3500, 3600, 4200, 4700, 5000):
            low = shard.shard.record.slot_high
            await shard.upsert(range(low, high), rows[low:high])
            kinds.append(await site.build_once())
            assert recall(shard, clustered(50, seed=9)) >= 0.95
        assert kinds == ["base", "delta", None, "merge", "delta", None]
        assert [s.kind for s in shard.reader.manifest.vectors["0"].segments] == ["base", "delta"]


async def test_a_result_that_comes_too_late_is_refused(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema(dim=24)) as shard:
        site = Site(shard)
        await shard.upsert(range(1000), clustered(1000))
        first = await site.next()
        assert first is not None
        assert await site.build_once() == "base"
        with pytest.raises(Conflict, match="is not the one under way"):
            await site.builds.handlers()["build.done"]({}, to_body(site.workshop.build(first)), 0.0)


async def test_searches_go_on_while_the_base_moves_under_them(tmp_path: Path) -> None:
    rows = clustered(2000)
    async with written_shard(tmp_path / "1-0", schema(dim=24)) as shard:
        site = Site(shard)
        await shard.upsert(range(1000), rows[:1000])
        await site.build_once()
        before = shard.reader.view()
        await shard.upsert(range(1000, 2000), rows[1000:])
        await site.build_once()
        [(slots, _)] = before.nearest(0, rows[5:6], limit=3, ef=None, exact=False, where=None)
        assert before.keys(slots)[0] == id_key(5)
        assert before.count(None) == 1000


async def test_the_space_of_a_shard_whose_points_are_replaced_stays_bounded(tmp_path: Path) -> None:
    rows = clustered(2000)
    async with written_shard(tmp_path / "1-0", schema(dim=24), purge_after_s=0.0) as shard:
        site = Site(shard)
        for _ in range(12):
            await shard.upsert(range(2000), rows)
            await site.build_once()
        await shard.upsert(range(0, 2000, 3), rows[::3])
        assert shard.shard.record.slot_high - shard.shard.record.slot_low > 1.5 * 2000 + SPAN_SLACK
        await site.builds.free(shard.shard)
        await shard.shard.checkpoint()
        record = shard.shard.record
        assert record.slot_high - record.slot_low <= 1.5 * 2000 + SPAN_SLACK
        while await site.build_once() is not None:
            pass
        assert recall(shard, clustered(50, seed=9)) >= 0.95
        look = shard.reader.view()
        assert look.count(None) == 2000
        assert len(set(look.keys(look.scan(None)))) == 2000


async def test_a_job_whose_files_are_shorter_than_it_says_is_given_up_not_fatal(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema(dim=24)) as shard:
        site = Site(shard)
        await shard.upsert(range(600), clustered(600))
        job = await site.next()
        assert job is not None
        # As after the shard's folder was replaced by that of a snapshot with fewer points.
        assert attempt(site.workshop, msgspec.structs.replace(job, high=10_000_000), LOG) is None
        assert site.workshop.still_s() == 0.0
        built = attempt(site.workshop, job, LOG)
        assert built is not None
        assert built.added == 600


async def test_the_files_of_a_shard_that_did_not_change_are_not_read_again(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema(dim=24)) as shard:
        site = Site(shard)
        await shard.upsert(range(600), clustered(600))
        await site.build_once()
        await shard.upsert(range(600, 1200), clustered(600, seed=4))
        assert site.builds.wanted
        live, away = shard.shard.folder / "columns" / "live.bin", tmp_path / "away"
        live.rename(away)
        assert site.builds.wanted
        away.rename(live)
        assert await site.build_once() == "fold"
        assert not site.builds.wanted


async def test_what_was_known_of_a_shard_goes_when_it_is_closed(tmp_path: Path) -> None:
    async with written_shard(tmp_path / "1-0", schema(dim=24)) as shard:
        site = Site(shard)
        await shard.upsert(range(600), clustered(600))
        assert await site.next() is not None
        await site.builds.handlers()["build.failed"]({}, b"", 0.0)
        assert await site.next() is None  # not so soon after it failed
        site.open.clear()
        assert not site.builds.wanted
        site.open.append(shard.shard)
        assert await site.next() is not None
