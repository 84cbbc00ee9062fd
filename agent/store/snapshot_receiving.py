"""A snapshot that another replica sends: kept as it comes, checked as a whole, built beside, then installed.

.receiving   what came so far         .installing  the new folder, being built
.<incarnation>.new                    it is decided: a start finishes it, too (deleted.put_in_place)
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.link import Answer, Header, whole
from agent.store.archive import ArchiveReader, SavedShard
from agent.store.deleted import put_in_place, staged_folder
from agent.store.driven_replica import DrivenReplica
from agent.store.files import Files
from agent.store.identity import write_identity
from agent.store.replica_sending import Key
from agent.store.shard_copy import Target, build_shard
from agent.store.snapshot_sending import sending_path
from core.errors import BadRequest, Conflict, ShoalError, Unavailable
from core.replication.log import Position
from core.replication.recent import RecentRequests
from core.replication.replica import Identity
from net.logs import Log


@dataclass(slots=True)
class _Incoming:
    """What comes for one shard. `is_whole`: it is being built, or waits to be installed."""

    hash: str
    size_bytes: int
    position: Position
    term: int
    path: Path
    have_bytes: int = 0
    is_whole: bool = False


class SnapshotReceiving:
    """Of one store. `own` runs work that outlives the call that began it."""

    def __init__(
        self,
        files: Files,
        log: Log,
        check_room: Callable[[int], None],
        own: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._files, self._log, self._check_room, self._own = files, log, check_room, own
        self._incoming: dict[Key, _Incoming] = {}
        self._turn = asyncio.Lock()

    async def ask(self, driven: DrivenReplica, header: Header) -> Answer:
        """Whether a snapshot at `position` would be of use, and what is there of an earlier one."""
        there = self._incoming.get(driven.key)
        wanted = _is_wanted(driven, header) and not (there is not None and there.is_whole)
        if there is None:
            return {"wanted": wanted, "hash": "", "have": 0}, b""
        return {"wanted": wanted, "hash": there.hash, "have": there.have_bytes}, b""

    async def part(self, driven: DrivenReplica, header: Header, body: bytes) -> Answer:
        """One chunk; answers from where to go on. Raises Conflict if it is of no use any more."""
        if not _is_wanted(driven, header):
            raise Conflict("this replica has more than the snapshot, or a newer term")
        if whole(header, "schema") > driven.shard.schema.version:
            driven.schema_wanted(whole(header, "schema"))
            raise Unavailable("the snapshot was made with a newer schema; this node fetches the map")
        async with self._turn:
            coming = await self._coming(driven, header)
            if coming.is_whole or whole(header, "offset") != coming.have_bytes:
                return {"have": coming.have_bytes}, b""
            if coming.have_bytes + len(body) > coming.size_bytes or not body:
                raise BadRequest(f"a chunk of {len(body)} bytes does not fit into the snapshot")
            self._check_room(len(body))
            await asyncio.to_thread(_append, coming.path, coming.have_bytes, body)
            coming.have_bytes += len(body)
            if coming.have_bytes == coming.size_bytes:
                coming.is_whole = True
                saved = msgspec.json.decode(header.get("saved", b""), type=SavedShard)
                self._own(self._install(driven, coming, saved))
        return {"have": coming.have_bytes}, b""

    async def _coming(self, driven: DrivenReplica, header: Header) -> _Incoming:
        there = self._incoming.get(driven.key)
        digest, size = str(header.get("hash")), whole(header, "size")
        if there is None or (there.hash, there.size_bytes) != (digest, size):
            if there is not None and there.is_whole:
                raise Conflict("another snapshot is being installed")
            path = receiving_path(driven.shard.folder)
            await asyncio.to_thread(path.unlink, missing_ok=True)
            there = _Incoming(digest, size, _position(header), whole(header, "term"), path)
            self._incoming[driven.key] = there
        return there

    async def _install(self, driven: DrivenReplica, coming: _Incoming, saved: SavedShard) -> None:
        try:
            await asyncio.to_thread(self._build, driven, coming, saved)
        except (ShoalError, OSError, msgspec.MsgspecError) as error:
            self._log.warning("snapshot.not_installed", shard=f"{driven.key}", why=str(error))
            self._incoming.pop(driven.key, None)
        else:
            driven.install_snapshot(coming.term, coming.position, RecentRequests())
            if not driven.is_installing:  # it has more by now
                self._incoming.pop(driven.key, None)
        finally:
            await asyncio.to_thread(coming.path.unlink, missing_ok=True)

    def _build(self, driven: DrivenReplica, coming: _Incoming, saved: SavedShard) -> None:
        """In a thread. Raises BadRequest if it is not whole."""
        shard, replica = driven.shard, driven.replica
        if replica is None:
            raise Unavailable("the replica was closed")
        with coming.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != coming.hash:
                raise BadRequest("what came does not match its hash")
        folder = installing_path(shard.folder)
        shutil.rmtree(folder, ignore_errors=True)
        schema = shard.schema
        target = Target(
            folder=folder,
            collection=driven.key[0],
            shard=driven.key[1],
            shard_count=driven.shard_count,
            identity=replica.identity,
            schema=schema.version,
            vectors={v: (v, params) for v, params in schema.vectors.items() if v in saved.vectors},
            term=coming.position.term,
            copy=secrets.randbits(63),
        )
        reader = ArchiveReader(coming.path)
        try:
            prefix = f"{driven.key[0]}-{driven.key[1]}"
            build_shard(reader, saved, target, prefix=prefix, with_graphs=True, files=self._files)
        finally:
            reader.close()

    def swap(self, driven: DrivenReplica, identity: Identity, now_us: int) -> Callable[[], None]:
        """What puts the built folder in place, in a thread, once the shard is closed.

        The identity goes with it: promises may have been made since the folder was built.
        """
        folder, key = driven.shard.folder, driven.key

        def swap() -> None:
            built, data = installing_path(folder), folder.parent.parent
            staged = staged_folder(data, *key, identity.incarnation)
            write_identity(built / "log", identity, self._files)
            self._files.rename(built, staged)
            self._files.sync_folder(folder.parent)  # decided: from here on a start finishes it
            try:
                put_in_place(data, *key, identity.incarnation, now_us=now_us)
            except OSError:
                self._take_back(staged, folder)
                raise
            self._files.sync_folder(folder.parent)

        return swap

    def _take_back(self, staged: Path, folder: Path) -> None:
        """The old folder goes on, and makes promises and keeps entries that the staged one lacks."""
        if not folder.exists():
            return  # it does not: the shard is damaged until the next start
        try:
            self._files.rename(staged, installing_path(folder))
            self._files.sync_folder(folder.parent)
        except OSError:
            # In place of the old one it must at least be known as damaged: then it counts for nothing.
            shutil.rmtree(staged / "log")

    def installed(self, key: Key) -> None:
        self._incoming.pop(key, None)


def receiving_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.receiving")


def installing_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.installing")


def remove_leftovers(folder: Path) -> None:
    """What an earlier process had not finished."""
    sending = sending_path(folder)
    for path in (sending, sending.with_name(f"{sending.name}-db"), receiving_path(folder)):
        path.unlink(missing_ok=True)
    shutil.rmtree(installing_path(folder), ignore_errors=True)


def _is_wanted(driven: DrivenReplica, header: Header) -> bool:
    replica = driven.replica
    if replica is None or driven.is_installing or replica.me.incarnation != header.get("to"):
        return False
    return replica.wants_snapshot(whole(header, "term"), _position(header))


def _append(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(data)


def _position(header: Header) -> Position:
    return msgspec.convert(header.get("position"), Position)
