"""A shard as searches see it: files mapped again as they grow, graphs opened as they are sealed."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.exact import Rows
from agent.front.bitmaps import Bitmaps
from agent.front.rows import KnownSeqs, StoredRows
from agent.front.sealed import NO_GRAPHS, Sealed, open_sealed
from agent.front.view import Look
from agent.mapped import MappedFile
from agent.metrics import Metrics
from agent.page import Page, ShardFlag, ShardRecord
from agent.store.manifest import NAME, Manifest, VectorState, read_manifest
from core.api.indexes import text_options
from core.cluster import Collection
from core.errors import Damaged, Unavailable
from core.filters import TextIndexes
from core.hashing import KEY_BYTES
from core.payload import parse_path

U8 = NDArray[np.uint8]

_OPEN, _DAMAGED, _PUBLISHING = map(int, (ShardFlag.OPEN, ShardFlag.DAMAGED, ShardFlag.PUBLISHING))
"""As numbers: the & of an enum takes a microsecond, three times a search."""
_AHEAD_SLOTS = 1 << 14
"""Live bits are copied this far beyond the last slot known, because the page is read after them."""
_TRIES = 64
_RETRY_S = 0.5


class VectorFiles:
    """One vector of a shard: rows, which slots have one, and the graphs over them."""

    def __init__(self, folder: Path, v: int, state: VectorState, sealed: Sealed) -> None:
        self.state = state
        self.sealed = sealed
        self.rows = Rows(state.distance, state.dim, sealed.mean)
        self._file = MappedFile(folder / "vectors" / f"{v}.f32")
        self._has = MappedFile(folder / "columns" / f"has.{v}.bin")

    def reach(self, high: int) -> None:
        """Map the rows of all slots below `high`."""
        if len(self.rows.all) < high:
            self.rows.all = self._file.array(np.float32, high, self.state.dim)

    def has_bits(self, base: int, high: int) -> U8:
        """Bytes of the slots base..high-1; base is a multiple of 8."""
        return self._has.bits(high)[base >> 3 :]


class ShardReader:
    """All that a front keeps open of one shard. A look is cheap, and serves one request."""

    def __init__(
        self,
        folder: str | Path,
        page: Page,
        place: int,
        metrics: Metrics | None = None,
        *,
        batch_threads: int = 2,
    ) -> None:
        self.folder = Path(folder)
        self.batch_threads = batch_threads
        self.names: Mapping[str, int] = {"": 0}
        self.text_indexes: TextIndexes = {}
        self.vectors: dict[int, VectorFiles] = {}
        self._page, self._place, self._metrics = page, place, metrics
        self._live = MappedFile(self.folder / "columns" / "live.bin")
        self._ids = MappedFile(self.folder / "columns" / "ids.bin")
        self._known_high = 0
        self._quiet_high = 0
        self._opening = threading.Lock()
        self._changing = threading.Lock()
        self._schema_number = 0
        self._retry_s = 0.0
        self.points = StoredRows(self.folder / "points.db")
        self.seqs = KnownSeqs()
        self.bitmaps = Bitmaps(self.folder, self.points, metrics)
        self.manifest = read_manifest(self.folder / NAME)
        self._latest, self._asked = self.manifest, self.manifest.number
        try:
            self._take(self.manifest)
        except Damaged:  # a graph is; the rows answer, more slowly, until the builder has made another
            self._failed()

    def set_schema(self, info: Collection) -> None:
        """What the map says of the collection: the vectors' names and the text indexes."""
        self.names = info.vectors
        self.text_indexes = {
            parse_path(path): text_options(index.schema.params)
            for path, index in info.indexes.items()
            if index.schema.type == "text"
        }
        self.bitmaps.set_schema(self.text_indexes, info.vectors)

    def close(self) -> None:
        self.points.close()

    def record(self) -> ShardRecord:
        return self._page.shard(self._place)

    def built(self, v: int) -> int:
        """Slots of vector v from here on are searched exactly: all of them without a graph."""
        files = self.vectors.get(v)
        return 0 if files is None else files.sealed.built

    def indexed_vectors(self) -> int:
        """How many vectors need no more work: all while the shard is not being built, for a short tail
        counts as indexed; else those that the graphs hold."""
        try:
            with self.view() as look:
                if not look.record.flags & ShardFlag.BUILDING:
                    return sum(look.count_with(v) for v in self.vectors)
        except (Damaged, Unavailable):
            pass  # it is not open
        return sum(files.sealed.count for files in self.vectors.values())

    def segments(self) -> int:
        """Sealed graphs and the tail."""
        return 1 + sum(len(files.sealed.graphs) for files in self.vectors.values())

    def index_points(self, number: int) -> int:
        """How many points have a value in the payload index; 0 while the shard is not open."""
        try:
            with self.view() as look:
                return self.bitmaps.points_in(number, look)
        except (Damaged, Unavailable):
            return 0

    # -- looks ----------------------------------------------------------------------------------------------

    def view(self) -> Look:
        """A consistent look at the points. Raises Damaged, and Unavailable if the shard is not open."""
        page, place = self._page, self._place
        for _ in range(_TRIES):
            before = page.shard(place)
            quiet = not before.flags & _PUBLISHING
            if quiet:
                self._quiet_high = before.slot_high
            base, top = before.slot_low >> 3, max(self._known_high, before.slot_high) + _AHEAD_SLOTS
            bits = self._live_bytes((top + 7) >> 3)[base:].copy()
            record = page.shard(place)
            if record.flags & _DAMAGED:
                raise Damaged(
                    f"shard {self.folder.name} is damaged, the store's log names the file; "
                    "restore the shard or the collection from a snapshot"
                )
            # The place may be another shard's by now, or another replica's of this one.
            if not record.flags & _OPEN or record.incarnation != self.manifest.contents_id:
                raise Unavailable(f"shard {self.folder.name} is not open; it may be starting")
            clean = quiet and before.applied == record.applied and before.slot_high == record.slot_high
            if not clean:
                # One copy is not enough beside a write. memcpy may read the end first: it can miss a new
                # slot's bit, and then the old slot's, cleared meanwhile. What the first copy saw cleared
                # had been replaced before the second begins.
                bits |= self._live_bytes((top + 7) >> 3)[base : base + len(bits)]
                record = page.shard(place)
            self._known_high = record.slot_high
            if record.slot_high >= (base + len(bits) - 1) << 3:
                continue  # more was published than had been copied
            if record.manifest != self.manifest.number:
                self.refresh(record.manifest)
            return Look(self, record, bits, base << 3, self._quiet_high, clean)
        raise Unavailable(f"shard {self.folder.name} grows faster than it can be looked at; retry")

    def _live_bytes(self, count: int) -> U8:
        """The first `count` bytes of the live bits, and zeros if the file is not that long yet."""
        try:
            return self._live.bytes(count)
        except EOFError:
            have = self._live.bytes(min(count, self._live.path.stat().st_size))
            return np.concatenate((have, np.zeros(count - len(have), np.uint8)))

    def ids(self, high: int) -> U8:
        """Id keys by slot, (high, 17)."""
        return self._ids.array(np.uint8, high, KEY_BYTES)

    # -- manifests ------------------------------------------------------------------------------------------

    def refresh(self, number: int | None = None) -> None:
        """Take over manifest `number`, as the page says; None: the newest, and wait for its graphs.

        New vectors and columns are there at once, dropped ones gone. Graphs are opened beside the searches,
        which meanwhile go on with the old ones and a longer tail.
        """
        if number is None:
            with self._opening:
                self._take(read_manifest(self.folder / NAME))
            return
        if number != self._asked:  # reading a manifest costs more than a search: once for each number
            try:
                self._latest = read_manifest(self.folder / NAME)
            except (Damaged, OSError):
                self._failed()
                return
            self._take_schema(self._latest)
            self._asked = number
        if self._latest.number == self.manifest.number or time.monotonic() < self._retry_s:
            return
        if self._opening.acquire(blocking=False):
            threading.Thread(
                target=self._open_beside, args=(self._latest,), name="graphs.open", daemon=True
            ).start()

    def _open_beside(self, manifest: Manifest) -> None:
        try:
            self._take(manifest)
        except (Damaged, OSError):
            self._failed()
        finally:
            self._opening.release()

    def _failed(self) -> None:
        """Files may be gone because there is a newer manifest: a later look tries again. If they are damaged
        the scrubber says so; the old graphs, and the rows themselves, answer until then."""
        self._retry_s = time.monotonic() + _RETRY_S
        if self._metrics is not None:
            self._metrics.counter("shoal_graphs_not_opened_total").add()

    def _take(self, manifest: Manifest) -> None:
        """Open what the manifest names and use it from the next look on. Raises Damaged, OSError."""
        self._take_schema(manifest)
        opened: dict[int, VectorFiles] = {}
        for number, state in manifest.vectors.items():
            known = self.vectors.get(int(number))
            if known is not None and known.state != state:
                sealed = open_sealed(self.folder / "segments", state, known.sealed)
                opened[int(number)] = VectorFiles(self.folder, int(number), state, sealed)
        with self._changing:
            self.vectors = {v: opened.get(v, files) for v, files in self.vectors.items()}
            self.manifest = manifest

    def _take_schema(self, manifest: Manifest) -> None:
        """Vectors and columns that came or went; never back to what an older manifest says."""
        with self._changing:
            if manifest.number < self._schema_number:
                return
            self._schema_number = manifest.number
            bare = {
                int(v): msgspec.structs.replace(s, segments=(), mean=None)
                for v, s in manifest.vectors.items()
            }
            self.vectors = {
                v: self.vectors.get(v) or VectorFiles(self.folder, v, state, NO_GRAPHS)
                for v, state in bare.items()
            }
            self.bitmaps.take_columns(manifest.columns)
