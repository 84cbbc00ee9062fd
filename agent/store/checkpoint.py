"""A shard's checkpoint: all up to a seq made durable and written down, then the log and dead rows let go."""

from __future__ import annotations

import time

import msgspec

from agent.store.apply import Applier, DeadSlot
from agent.store.contents import column_files
from agent.store.files import Files
from agent.store.manifest import (
    NAME,
    ColumnState,
    FileBlocks,
    Manifest,
    ShardSchema,
    VectorState,
    block_crcs,
    write_manifest,
)
from agent.store.recovery import IDS, crcs_name
from core.hashing import KEY_BYTES


class Checkpoints:
    """Writes a shard's manifest. `prepare` may run beside writes; the others run in the apply stage."""

    def __init__(self, applier: Applier, manifest: Manifest, files: Files, purge_after_s: float) -> None:
        self._applier = applier
        self._contents = applier.contents
        self._files = files
        self._purge_after_s = purge_after_s
        self.manifest = manifest

    def prepare(self) -> None:
        """The long part: most of what is not yet on disk goes there now."""
        self._contents.sync()
        self._contents.points.checkpoint_beside()

    def finish(self, *, oldest_request: int | None = None, clean: bool = False) -> None:
        """Make the rest durable, write the manifest, purge rows of slots that have long been dead.

        `oldest_request`: remembered requests with a lower seq are forgotten.

        The order is what a crash relies on: files, then the manifest that vouches for them, then what the
        manifest says is not needed any more.
        """
        contents, meta = self._contents, self._contents.points.meta
        contents.sync()
        contents.points.checkpoint()
        contents.points.sync()  # also what a reader kept from moving into the database
        purge, kept = self._purgeable(everything=clean)
        slot_low = contents.points.first_slot_but({dead.slot for dead in purge})
        self.write(
            checkpoint=meta.applied, slot_low=slot_low, slot_high=meta.slot_high,
            files=self._checksums(clean=clean), clean=clean,
        )  # fmt: skip
        self._purge(purge, kept, oldest_request)
        self._applier.publisher.update(slot_low=slot_low)
        if not clean:
            contents.punch_below(slot_low)

    def write(self, **fields: object) -> None:
        """Replace the manifest by one with these fields changed, and publish its number."""
        changed = msgspec.structs.replace(self.manifest, **{"clean": False, **fields})
        changed = msgspec.structs.replace(changed, number=self.manifest.number + 1)
        write_manifest(self._contents.folder / NAME, changed, self._files)
        self.manifest = changed
        self._applier.publisher.update(manifest=changed.number, built=changed.built, schema=changed.schema)

    def take_schema(self, schema: ShardSchema, ready: set[int]) -> None:
        """Write down the schema; `ready` are the columns that searches may use."""
        old = self.manifest.vectors
        vectors = {}
        for v, params in schema.vectors.items():
            before = old.get(str(v))
            fresh = msgspec.structs.asdict(params)
            if before is not None:
                fresh |= {"mean": before.mean, "segments": before.segments}
            vectors[str(v)] = VectorState(**fresh)
        columns = {
            str(k): ColumnState(**msgspec.structs.asdict(params), ready=k in ready)
            for k, params in schema.columns.items()
        }
        self.write(schema=schema.version, vectors=vectors, columns=columns)

    def _purgeable(self, *, everything: bool) -> tuple[list[DeadSlot], list[DeadSlot]]:
        now_s = time.monotonic()  # before the page is read: a read that begins later sees none of these alive
        oldest_ns = self._applier.publisher.oldest_read_ns()
        before_s = now_s if oldest_ns is None else min(now_s, oldest_ns / 1e9)
        before_s = max(before_s, now_s - self._purge_after_s)
        purge = [dead for dead in self._applier.dead if everything or dead.died_s <= before_s]
        kept = [dead for dead in self._applier.dead if not everything and dead.died_s > before_s]
        return purge, kept

    def _purge(self, purge: list[DeadSlot], kept: list[DeadSlot], oldest_request: int | None) -> None:
        points = self._contents.points
        if purge or oldest_request is not None:
            points.begin()
            try:
                points.purge(dead.slot for dead in purge)
                if oldest_request is not None:
                    points.forget_requests(oldest_request)
                points.commit(points.meta.applied)
            except BaseException:
                points.rollback()
                raise
            points.give_back()
        self._applier.dead = kept

    def _checksums(self, *, clean: bool) -> dict[str, FileBlocks]:
        """Of the files whose blocks never change; whole blocks that were there before are not read again.

        At a clean end also of the columns, which change in place.
        """
        contents, known = self._contents, self.manifest.files
        high = contents.points.meta.slot_high
        files = {IDS: block_crcs(contents.ids.bytes()[: high * KEY_BYTES].data, known.get(IDS))}
        for vector in contents.vectors.values():
            name = crcs_name(vector.v)
            files[name] = block_crcs(vector.crcs_file.bytes()[: high * 4].data, known.get(name))
        if clean:
            for k in contents.columns:
                for path in column_files(contents.folder, k):
                    files[f"columns/{path.name}"] = block_crcs(memoryview(path.read_bytes()))
        return files
