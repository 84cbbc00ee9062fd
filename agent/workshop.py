"""How graphs are built: kept in memory, the tail added, checked by the canary, saved under their hash."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent import canary
from agent.build_jobs import Built, Job
from agent.exact import Rows
from agent.graphs import HASH_HEX, Graph, GraphSpec, Scalar, file_hash, open_graph, usable_scalar
from agent.mapped import MappedFile
from agent.page import Reads
from agent.store.files import Files
from agent.store.manifest import Segment
from core.errors import Damaged, InvariantBroken
from core.query.scoring import F32, I64
from net.logs import Log

Bits = NDArray[np.bool_]

ADD_ROWS = 2048
"""Rows added between two looks at whether to stop."""
MEAN_ROWS = 8192
RECALL_POOR = 0.8
"""Below this, whatever the width, narrow numbers may be what is wrong: the graph is built in f32."""
CANARY_GROWTH = 1.5
"""A graph that has grown by this since it was last measured is measured again."""
KEPT_BYTES = 1 << 30


class Abandoned(Exception):
    """The builder was told to stop."""


@dataclass(slots=True)
class _Kept:
    """A graph in memory, as it is in its file."""

    graph: Graph
    file: str
    measured: canary.Measured | None = None
    measured_count: int = 0
    used_s: float = 0.0
    bytes: int = 0
    """Of its file: to ask the graph means to look at every row of it."""


class Workshop:
    """Builds one graph after the other; keeps the last ones in memory to add to them."""

    def __init__(self, log: Log, reads: Reads, *, threads: int, files: Files | None = None) -> None:
        self._log = log
        self._reads = reads
        self._threads = threads
        self._files = files or Files()
        self._kept: dict[tuple[int, int, int, str], _Kept] = {}
        self.stopping = False
        self._moved_s: float | None = None

    def still_s(self) -> float:
        """For how long the job under way has come no further; 0 if there is none. From any thread."""
        moved_s = self._moved_s
        return 0.0 if moved_s is None else time.monotonic() - moved_s

    def build(self, job: Job) -> Built:
        """Do a job. Raises Damaged (its files), OSError (no room), Abandoned; nothing is changed then."""
        self._moved()
        try:
            return self._build(job)
        finally:
            self._moved_s = None

    def _moved(self) -> None:
        self._moved_s = time.monotonic()

    def _build(self, job: Job) -> Built:
        source = _Source(job)
        if job.kind == "delta":
            return self._delta(job, source)
        if job.kind in ("fold", "merge"):
            folded = self._fold(job, source)
            if folded is not None:
                return folded
        return self._from_rows(job, source)

    def forget(self) -> None:
        """Let go of all graphs in memory."""
        self._kept.clear()

    # -- the kinds of work ---------------------------------------------------------------------------------

    def _from_rows(self, job: Job, source: _Source) -> Built:
        began_s = time.monotonic()
        slots = source.live(job.low, job.high)
        scalar = usable_scalar(_scalar(job), job.distance, source.largest(slots))
        mean = source.mean_of(slots)
        kept = self._new(job, source, slots, scalar, mean)
        measured = self._measured(kept, source, slots, mean)
        if measured is not None and measured.recall < canary.RECALL_MIN:
            if measured.recall < RECALL_POOR and scalar != "f32":
                kept = self._new(job, source, slots, "f32", mean)
                measured = self._measured(kept, source, slots, mean)
            self._log.warning(
                "builder.recall_low", shard=f"{job.collection}/{job.shard}", v=job.v, rows=len(slots),
                **({} if measured is None else {"recall": measured.recall, "ef": measured.ef}),
            )  # fmt: skip
        add_s = time.monotonic() - began_s
        mean_file = None if mean is None else self._save_mean(job, mean)
        segment, save_s = self._save(job, kept, "base", job.low)
        return self._built(job, (segment,), mean_file, len(slots), add_s, save_s)

    def _fold(self, job: Job, source: _Source) -> Built | None:
        """The tail (and what the delta holds) into the base; None if the base can't take it."""
        began_s = time.monotonic()
        base = job.segments[0]
        slots = source.live(base.high, job.high)
        mean = source.mean(job.mean)
        kept = self._open(job, base)
        if kept.graph.spec.scalar == "f16" and source.largest(slots) >= 200:
            return None
        self._add(kept.graph, source, slots, mean)
        if kept.measured is None or len(kept.graph) > CANARY_GROWTH * kept.measured_count:
            measured = self._measured(kept, source, source.live(base.low, job.high), mean)
            if measured is not None and measured.recall < RECALL_POOR and kept.graph.spec.scalar != "f32":
                return None
        add_s = time.monotonic() - began_s
        segment, save_s = self._save(job, kept, "base", base.low)
        return self._built(job, (segment,), job.mean, len(slots), add_s, save_s)

    def _delta(self, job: Job, source: _Source) -> Built:
        began_s = time.monotonic()
        base, *deltas = job.segments
        mean = source.mean(job.mean)
        if deltas:
            kept = self._open(job, deltas[0])
        else:
            largest = source.largest(source.live(base.high, job.high))
            scalar = usable_scalar(_scalar(job), job.distance, largest)
            kept = _Kept(Graph(GraphSpec(job.dim, job.distance, scalar, job.m, job.ef_construct)), "")
        slots = source.live(deltas[0].high if deltas else base.high, job.high)
        self._add(kept.graph, source, slots, mean)
        add_s = time.monotonic() - began_s
        segment, save_s = self._save(job, kept, "delta", base.high)
        # A part of the whole needs no canary of its own: the base's width holds for it.
        segment = msgspec.structs.replace(segment, recall=base.recall, ef=base.ef)
        return self._built(job, (base, segment), job.mean, len(slots), add_s, save_s)

    # -- parts ---------------------------------------------------------------------------------------------

    def _new(self, job: Job, source: _Source, slots: I64, scalar: Scalar, mean: F32 | None) -> _Kept:
        graph = Graph(GraphSpec(job.dim, job.distance, scalar, job.m, job.ef_construct))
        self._add(graph, source, slots, mean)
        return _Kept(graph, "")

    def _add(self, graph: Graph, source: _Source, slots: I64, mean: F32 | None) -> None:
        for at in range(0, len(slots), ADD_ROWS):
            if self.stopping:
                raise Abandoned
            part = slots[at : at + ADD_ROWS]
            rows = source.rows.all.take(part, axis=0)
            alive = source.are_live(part)  # a row that died meanwhile may have become a hole: zeros
            part, rows = part[alive], rows[alive]
            graph.add(part, rows if mean is None else rows - mean, threads=self._threads)
            self._moved()

    def _measured(self, kept: _Kept, source: _Source, slots: I64, mean: F32 | None) -> canary.Measured | None:
        """Measure and remember; None if there is too little to measure."""
        with self._reads.held():  # what lives now stays readable, so that it counts rightly
            slots = slots[source.are_live(slots)]
            if len(slots) < canary.QUERIES:
                return None
            kept.measured = canary.measure(
                kept.graph, source.rows, slots, mean, threads=self._threads, seed=len(slots)
            )
        kept.measured_count = len(kept.graph)
        self._moved()
        return kept.measured

    def _open(self, job: Job, segment: Segment) -> _Kept:
        """The segment's graph in memory; taken out of what is kept until it is saved again."""
        kept = self._kept.pop((job.collection, job.shard, job.v, segment.kind), None)
        if kept is not None and kept.file == segment.file:
            return kept
        graph = open_graph(
            _segments(job) / segment.file,
            segment.hash,
            dim=job.dim,
            distance=job.distance,
            m=job.m,
            ef_construct=job.ef_construct,
            to_add=True,
        )
        measured = None
        if segment.recall is not None and segment.ef is not None:
            measured = canary.Measured(segment.ef, segment.recall)
        return _Kept(graph, segment.file, measured, segment.count)

    def _save(self, job: Job, kept: _Kept, kind: str, low: int) -> tuple[Segment, float]:
        """Write the graph under its hash, and keep it. The file is durable before this returns."""
        began_s = time.monotonic()
        fresh = _segments(job) / f"{job.v}.{kind}.building"
        try:
            kept.graph.save(fresh)
        except RuntimeError as error:
            raise OSError(f"{fresh}: {error}") from None
        self._moved()
        hash_ = file_hash(fresh)
        self._moved()
        self._seal(fresh, _segments(job) / f"{job.v}.{hash_}.usearch")
        kept.file = f"{job.v}.{hash_}.usearch"
        kept.bytes = os.path.getsize(_segments(job) / kept.file)
        self._keep(job, kind, kept)
        segment = Segment(
            kind="base" if kind == "base" else "delta",
            file=kept.file,
            low=low,
            high=job.high,
            count=len(kept.graph),
            bytes=kept.bytes,
            hash=hash_,
            recall=None if kept.measured is None else round(kept.measured.recall, 4),
            ef=None if kept.measured is None else kept.measured.ef,
        )
        return segment, time.monotonic() - began_s

    def _save_mean(self, job: Job, mean: F32) -> str:
        fresh = _segments(job) / f"{job.v}.mean.building"
        fresh.write_bytes(mean.tobytes())
        name = f"{job.v}.{file_hash(fresh)}.mean"
        self._seal(fresh, _segments(job) / name)
        return name

    def _seal(self, fresh: Path, final: Path) -> None:
        fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._files.sync(fd)
        finally:
            os.close(fd)
        self._files.rename(fresh, final)
        self._files.sync_folder(final.parent)

    def _keep(self, job: Job, kind: str, kept: _Kept) -> None:
        kept.used_s = time.monotonic()
        if kind == "base":
            self._kept.pop((job.collection, job.shard, job.v, "delta"), None)
        self._kept[job.collection, job.shard, job.v, kind] = kept
        room = KEPT_BYTES
        for key, other in sorted(self._kept.items(), key=lambda item: -item[1].used_s):
            room -= other.bytes
            if room < 0 and other is not kept:
                del self._kept[key]

    @staticmethod
    def _built(
        job: Job, segments: tuple[Segment, ...], mean: str | None, added: int, add_s: float, save_s: float
    ) -> Built:
        return Built(number=job.number, segments=segments, mean=mean, added=added, add_s=add_s, save_s=save_s)


class _Source:
    """The rows of a shard's vector, as the store has published them."""

    def __init__(self, job: Job) -> None:
        folder = Path(job.folder)
        self._job = job
        self.rows = Rows(job.distance, job.dim)
        self.rows.all = MappedFile(folder / "vectors" / f"{job.v}.f32").array(np.float32, job.high, job.dim)
        self._live = MappedFile(folder / "columns" / "live.bin").bits(job.high)
        self._has = MappedFile(folder / "columns" / f"has.{job.v}.bin").bits(job.high)

    def live(self, low: int, high: int) -> I64:
        """The slots of a range that are live now and have the vector."""
        first = low >> 3
        both = self._live[first : (high + 7) >> 3] & self._has[first : (high + 7) >> 3]
        bits = np.unpackbits(both, bitorder="little")[low & 7 :][: high - low]
        return np.flatnonzero(bits) + low

    def are_live(self, slots: I64) -> Bits:
        """Which of the slots are live at this moment."""
        live: Bits = (self._live[slots >> 3] >> (slots & 7).astype(np.uint8) & 1).view(np.bool_)
        return live

    def largest(self, slots: I64) -> float:
        """The largest |x| of the rows, where it matters to the kind of graph."""
        if self._job.graph != "f16":
            return 0.0
        parts = (slots[at : at + MEAN_ROWS] for at in range(0, len(slots), MEAN_ROWS))
        return max((float(np.abs(self.rows.all.take(part, axis=0)).max()) for part in parts), default=0.0)

    def mean_of(self, slots: I64) -> F32 | None:
        """Of Euclid: the mean of the rows."""
        if self._job.distance.larger_is_better or not len(slots):
            return None
        total = np.zeros(self._job.dim, np.float64)
        for at in range(0, len(slots), MEAN_ROWS):
            total += self.rows.all.take(slots[at : at + MEAN_ROWS], axis=0).sum(axis=0, dtype=np.float64)
        mean: F32 = (total / len(slots)).astype(np.float32)
        return mean

    def mean(self, name: str | None) -> F32 | None:
        if name is None:
            return None
        path = _segments(self._job) / name
        mean = np.fromfile(path, np.float32)
        if len(mean) != self._job.dim or name.split(".")[1] != file_hash(path)[:HASH_HEX]:
            raise Damaged(f"{path} does not match its name; the builder can make the graph anew")
        return mean


def _segments(job: Job) -> Path:
    return Path(job.folder) / "segments"


def _scalar(job: Job) -> Scalar:
    if job.graph == "none":
        raise InvariantBroken(f"vector {job.v} has no graphs, yet one was asked for")
    return job.graph
