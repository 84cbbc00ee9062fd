"""Snapshots of collections, shards and the node: made, listed, deleted, and brought back.

    snapshots = Snapshots(data, catalogue, shards_of, now_us=…, check_room=…, limits=…)
    await snapshots.make(scope)           await snapshots.list(scope)        → SnapshotInfo
    await snapshots.path(scope, name)     for a download                     and delete
    await snapshots.recover(scope, name, checksum=…, who=…)
    await snapshots.recover_upload(scope, file, checksum=…, who=…)           `file`: a name in uploads/
    await snapshots.close()

What is brought back is built beside what there is, checked as a whole, and takes its place by one CAS. It
comes from this node's own folder or from an upload, never from where a client points.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from agent.store.archive import ArchiveReader, ArchiveWriter, SavedCollection, SavedShard, Table
from agent.store.catalogue import Catalogue
from agent.store.deleted import shard_folder, staged_folder
from agent.store.files import Files
from agent.store.saved_checks import check_compatible, check_saved
from agent.store.schemas import shard_schema
from agent.store.shard import Shard
from agent.store.shard_copy import Target, build_shard, save_shard
from agent.store.snapshot_folder import About, Scope, SnapshotFolder
from core.api.answers import SnapshotInfo
from core.api.checks import Limits, check_name
from core.cluster import Collection, CollectionId, aliases_of, find, named
from core.cluster_changes import first_shards
from core.errors import BadRequest, NoRoom, NotFound, NotSupported, Overloaded
from core.replication.replica import Identity

SNAPSHOTS = "snapshots"
UPLOADS = "uploads"
JOBS_MAX = 8
"""Snapshots being made or brought back, waiting ones included; they go one after another."""

_UPLOAD = re.compile(r"[0-9a-f]{32}\.part")
T = TypeVar("T")


class Snapshots:
    """What a node does with snapshots. A cancelled caller gives up the answer, not the work."""

    def __init__(
        self,
        data: Path,
        catalogue: Catalogue,
        shards_of: Callable[[CollectionId], Mapping[int, Shard]],
        *,
        now_us: Callable[[], int],
        check_room: Callable[[int], None],
        limits: Callable[[], Limits],
        files: Files | None = None,
    ) -> None:
        """`shards_of`: a collection's shards that are open here. `check_room(bytes)` raises NoRoom."""
        self._data, self._catalogue, self._shards_of = data, catalogue, shards_of
        self._now_us, self._check_room, self._limits = now_us, check_room, limits
        self._files = files or Files()
        self._folder = SnapshotFolder(data / SNAPSHOTS, self._files)
        (data / UPLOADS).mkdir(mode=0o700, exist_ok=True)
        for left in (data / UPLOADS).glob("*.part"):  # of fronts that are gone
            left.unlink()
        self._turn = asyncio.Lock()
        self._jobs: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Waits for what is under way."""
        await asyncio.gather(*self._jobs, return_exceptions=True)

    # -- what there is

    async def list(self, scope: Scope) -> list[SnapshotInfo]:
        name = self._resolved(scope)
        wanted = (scope.kind, name, scope.shard)
        found = await asyncio.to_thread(self._folder.all)
        return [
            about.info(file)
            for file, about in found.items()
            if (about.kind, about.collection, about.shard) == wanted
        ]

    async def path(self, scope: Scope, name: str) -> Path:
        """The file, for a download. Raises NotFound."""
        if name not in {info.name for info in await self.list(scope)}:
            raise NotFound(f"Not found: Snapshot {name[:80]} doesn't exist")
        return self._folder.path(name)

    async def delete(self, scope: Scope, name: str) -> None:
        await self.path(scope, name)
        await asyncio.to_thread(self._folder.delete, name)

    def _resolved(self, scope: Scope) -> str | None:
        """The collection's own name. Raises NotFound for it or its shard."""
        if scope.collection is None:
            return None
        collection = named(self._catalogue.map, scope.collection)
        if scope.shard is not None and not 0 <= scope.shard < collection.params.shard_number:
            raise NotFound(f"Not found: Shard {scope.shard} of collection `{collection.name}` doesn't exist")
        return collection.name

    async def _job(self, work: Coroutine[Any, Any, T]) -> T:
        if len(self._jobs) >= JOBS_MAX:
            work.close()
            raise Overloaded(f"{JOBS_MAX} snapshots are being made or brought back; try again later")
        task = asyncio.create_task(self._in_turn(work))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return await asyncio.shield(task)

    async def _in_turn(self, work: Coroutine[Any, Any, T]) -> T:
        async with self._turn:
            return await work

    # -- making

    async def make(self, scope: Scope) -> SnapshotInfo:
        """Writes go on meanwhile. Raises NotFound, NoRoom, Damaged, Overloaded."""
        self._resolved(scope)
        return await self._job(self._make(scope))

    async def _make(self, scope: Scope) -> SnapshotInfo:
        cluster = self._catalogue.map
        chosen = [*cluster.collections.values()]
        label, name = "node", None
        if scope.collection is not None:
            chosen = [named(cluster, scope.collection)]
            name = chosen[0].name
            label = f"c{chosen[0].id}" if scope.shard is None else f"c{chosen[0].id}-s{scope.shard}"
        made_us = self._now_us()
        path = self._folder.new_path(label, made_us)
        part = path.with_name(f"{path.name}.part")
        try:
            writer = await asyncio.to_thread(ArchiveWriter, part, lambda: self._check_room(0))
            try:
                saved = [await self._save(writer, collection, scope.shard, part) for collection in chosen]
                table = Table(scope.kind, cluster.cluster, made_us, tuple(saved))
                size_bytes, sha256 = await asyncio.to_thread(writer.finish, table)
            finally:
                writer.close()
            about = About(scope.kind, name, scope.shard, made_us, size_bytes, sha256, is_ours=True)
            await asyncio.to_thread(self._folder.publish, part, path, about)
        except OSError as e:
            raise NoRoom(f"the snapshot could not be written: {e.strerror}; free some space") from e
        finally:
            for left in part.parent.glob(f"{part.name}*"):
                left.unlink()
        return about.info(path.name)

    async def _save(
        self, writer: ArchiveWriter, collection: Collection, only: int | None, part: Path
    ) -> SavedCollection:
        saved: list[SavedShard] = []
        for number, shard in self._wanted(collection, only):
            async with shard.frozen() as manifest:
                prefix, scratch = f"{collection.id}-{number}", part.with_name(f"{part.name}-db")
                one = await asyncio.to_thread(
                    save_shard, writer, shard.folder, manifest, prefix=prefix, scratch=scratch
                )
            saved.append(one)
        aliases = tuple(aliases_of(self._catalogue.map, collection.id))
        return SavedCollection(collection, aliases, collection.params.shard_number, tuple(saved))

    def _wanted(self, collection: Collection, only: int | None) -> Sequence[tuple[int, Shard]]:
        """All shards, or the one; with other nodes, only if this one has a replica in sync of each."""
        records = self._catalogue.view.shards[collection.id].shards
        asked = [one for one in records if only is None or one.number == only]
        away = [one for one in asked if self._catalogue.me not in one.in_sync]
        if away:
            where = ", ".join(f"shard {one.number} is on {', '.join(one.in_sync)}" for one in away)
            raise NotSupported(
                f"a snapshot of collection {collection.name!r} is made on a node that has all of its shards, "
                f"but {where}; ask there, shard by shard"
            )
        there = self._shards_of(collection.id)
        return [(one.number, there[one.number]) for one in asked]

    # -- bringing back

    async def recover(self, scope: Scope, name: str, *, checksum: str | None, who: str) -> None:
        """From a snapshot in this node's folder: for a collection also one of another, or of the node."""
        found = (await asyncio.to_thread(self._folder.all)).get(name)
        if found is None:
            raise NotFound(f"Not found: Snapshot {name[:80]} doesn't exist on this node")
        if checksum is not None and checksum.lower() != found.sha256:
            raise _mismatch(f"it is {found.sha256}")
        path = self._folder.path(name)
        await self._job(self._recover(scope, path, found.sha256, is_ours=found.is_ours, who=who))

    async def recover_upload(self, scope: Scope, file: str, *, checksum: str | None, who: str) -> None:
        """From a file that a front has put into uploads/, which is gone afterwards."""
        if not _UPLOAD.fullmatch(file):
            raise BadRequest(f"upload: {file[:60]!r} is not the name of one")
        path = self._data / UPLOADS / file
        try:
            await self._job(self._recover_and_remove(scope, path, checksum, who=who))
        except Overloaded:  # it did not begin
            await asyncio.to_thread(path.unlink, missing_ok=True)
            raise

    async def _recover_and_remove(self, scope: Scope, path: Path, checksum: str | None, *, who: str) -> None:
        try:
            await self._recover(scope, path, checksum and checksum.lower(), is_ours=False, who=who)
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _recover(
        self, scope: Scope, path: Path, sha256: str | None, *, is_ours: bool, who: str
    ) -> None:
        try:
            reader = await asyncio.to_thread(ArchiveReader, path)
        except OSError as e:
            raise BadRequest(f"Wrong input: the snapshot cannot be opened: {e.strerror}") from None
        try:
            if sha256 is not None and await asyncio.to_thread(reader.sha256) != sha256:
                raise _mismatch("the file is another")
            self._check_room(reader.total_bytes())
            if scope.shard is None:
                await self._recover_collection(reader, scope, is_ours=is_ours, who=who)
            else:
                await self._recover_shard(reader, scope, scope.shard, is_ours=is_ours, who=who)
        except OSError as e:
            raise NoRoom(f"the snapshot could not be brought back: {e.strerror}; free some space") from e
        finally:
            reader.close()

    async def _recover_collection(
        self, reader: ArchiveReader, scope: Scope, *, is_ours: bool, who: str
    ) -> None:
        if scope.collection is None:
            raise BadRequest("Wrong input: a snapshot of the node is brought back collection by collection")
        there = find(self._catalogue.map, scope.collection)
        name = there.name if there is not None else check_name("collection", scope.collection)
        saved = _chosen(reader.table, name)
        check_saved(saved, self._limits())
        if len(saved.shards) != saved.shard_count:
            raise BadRequest("Wrong input: the snapshot is of one shard: bring it back under …/shards/{id}")
        if there is not None:
            check_compatible(saved.collection, there)
        me, id_ = self._catalogue.me, await self._catalogue.reserve_collection()
        collection = replace(saved.collection, id=id_, name=name, created_us=self._now_us())
        identities = [_new_identity() for _ in saved.shards]
        folders = [shard_folder(self._data, id_, shard.number) for shard in saved.shards]
        with _removed_on_failure(folders):
            for shard, folder in zip(saved.shards, folders, strict=True):
                identity = identities[shard.number]
                await self._build(reader, saved, shard, collection, folder, identity, is_ours=is_ours)
        incarnations = {(n, me): identity.incarnation for n, identity in enumerate(identities)}
        histories = [identity.history for identity in identities]
        shards = first_shards(id_, [[me]] * len(identities), incarnations, histories)
        # From here on the map decides: what a failure leaves is set aside at the next start.
        await self._catalogue.add_recovered(collection, shards, who=who)

    async def _recover_shard(
        self, reader: ArchiveReader, scope: Scope, number: int, *, is_ours: bool, who: str
    ) -> None:
        self._resolved(scope)
        there = named(self._catalogue.map, scope.collection or "")
        saved = _chosen(reader.table, there.name)
        check_saved(saved, self._limits())
        check_compatible(saved.collection, there)
        shard = next((s for s in saved.shards if s.number == number), None)
        if shard is None:
            raise BadRequest(f"Wrong input: the snapshot has no shard {number}")
        identity = _new_identity()
        folder = staged_folder(self._data, there.id, number, identity.incarnation)
        with _removed_on_failure([folder]):
            await self._build(reader, saved, shard, there, folder, identity, is_ours=is_ours)
        # From here on the map decides: what a failure leaves is finished or removed at the next start.
        await self._catalogue.replace_replica(
            there.id, number, identity.incarnation, identity.history, who=who
        )

    async def _build(
        self,
        reader: ArchiveReader,
        saved: SavedCollection,
        shard: SavedShard,
        collection: Collection,
        folder: Path,
        identity: Identity,
        *,
        is_ours: bool,
    ) -> None:
        schema = shard_schema(collection)
        target = Target(
            folder=folder,
            collection=collection.id,
            shard=shard.number,
            shard_count=saved.shard_count,
            identity=identity,
            schema=schema.version,
            vectors={
                old: (collection.vectors[name], schema.vectors[collection.vectors[name]])
                for name, old in saved.collection.vectors.items()
            },
        )
        prefix = f"{saved.collection.id}-{shard.number}"
        await asyncio.to_thread(
            build_shard, reader, shard, target, prefix=prefix, with_graphs=is_ours, files=self._files
        )


@contextmanager
def _removed_on_failure(folders: Sequence[Path]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _new_identity() -> Identity:
    return Identity(secrets.randbits(63), secrets.randbits(63), promised=1)


def _chosen(table: Table, name: str) -> SavedCollection:
    """The one collection of a snapshot; of a node's, the one of that name."""
    if table.kind != "node" and len(table.collections) == 1:
        return table.collections[0]
    found = [saved for saved in table.collections if saved.collection.name == name]
    if len(found) != 1:
        names = ", ".join(sorted(saved.collection.name for saved in table.collections)[:10])
        raise BadRequest(
            f"Wrong input: the snapshot has no collection {name[:80]!r}, it has {names or 'none'}"
        )
    return found[0]


def _mismatch(what: str) -> BadRequest:
    return BadRequest(f"Wrong input: Snapshot checksum mismatch: {what}")
