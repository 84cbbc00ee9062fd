"""Handlers about snapshots: the store makes and recovers them, the front streams them in and out."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agent.front.access import Role
from agent.front.routes import Reply, Request, Route, flag
from agent.front.serving import Serving
from agent.link import Client
from agent.page import NodeFlag, Page
from core.api.checks import one_of
from core.api.cluster import RecoverSnapshot, parse_recover
from core.api.decode import decode
from core.errors import BadRequest, DeadlineExceeded, NoRoom, NotFound, Overloaded

UPLOADS = "uploads"
UPLOADS_MAX = 4
"""Under way at once in one front."""
PATIENCE_S = 3600.0
"""How long a call may take that says no timeout: as long as a large collection is copied."""
STALLED_S = 60.0
_CHUNK_BYTES = 256 << 10
_COMING = ".coming"
_PRIORITIES = ("no_sync", "snapshot", "replica")
_ACCEPTED = b'{"status":"accepted","time":0.0}'


class Snapshots:
    """…/snapshots of collections, shards and the node."""

    def __init__(self, page: Page, link: Client, serving: Serving) -> None:
        self._page, self._link, self._serving = page, link, serving
        self._uploads = 0
        _remove_orphans(Path(UPLOADS))

    def routes(self) -> list[Route]:
        of_shard = "/collections/*/shards/*"
        return [
            *self._routes("", Role.ADMIN, 0),
            *self._routes("/collections/*", Role.FULL, 1),
            *self._routes(of_shard, Role.FULL, 2),
            Route("GET", f"{of_shard}/snapshot", Role.FULL, partial(self.stream, 2), sends_file=True),
        ]

    def _routes(self, prefix: str, role: Role, depth: int) -> list[Route]:
        """`depth`: how many parameters of the path say of what: collection, shard."""
        found = [
            Route("GET", f"{prefix}/snapshots", Role.READ, partial(self.list, depth)),
            Route("POST", f"{prefix}/snapshots", role, partial(self.make, depth)),
            Route("GET", f"{prefix}/snapshots/*", role, partial(self.download, depth), sends_file=True),
            Route("DELETE", f"{prefix}/snapshots/*", role, partial(self.delete, depth)),
        ]
        if depth:
            recover, upload = partial(self.recover, depth), partial(self.upload, depth)
            found += [
                Route("PUT", f"{prefix}/snapshots/recover", role, recover),
                Route("POST", f"{prefix}/snapshots/upload", role, upload, streams=True),
            ]
        return found

    async def list(self, depth: int, request: Request) -> Reply:
        return await self._call("snapshot.list", depth, request, {})

    async def make(self, depth: int, request: Request) -> Reply:
        return await self._call("snapshot.make", depth, request, {"wait": flag(request.query, "wait", True)})

    async def delete(self, depth: int, request: Request) -> Reply:
        header = {"name": request.parameters[-1], "wait": flag(request.query, "wait", True)}
        return await self._call("snapshot.delete", depth, request, header)

    async def recover(self, depth: int, request: Request) -> Reply:
        wanted = parse_recover(decode(RecoverSnapshot, request.body))
        header = {"name": wanted.file, "checksum": wanted.checksum, "wait": flag(request.query, "wait", True)}
        return await self._call("snapshot.recover", depth, request, header)

    async def _call(self, kind: str, depth: int, request: Request, header: dict[str, Any]) -> Reply:
        timeout_s = request.left_s() if "timeout" in request.query else PATIENCE_S
        full = {**_scope(request.parameters[:depth]), **header, "who": request.key_name}
        _, result = await self._link.call(kind, full, timeout_s=timeout_s)
        if not header.get("wait", True):
            return Reply(raw=_ACCEPTED, status=202)
        await self._serving.refresh()
        return Reply(result)

    # -- downloads

    async def download(self, depth: int, request: Request) -> Reply:
        name = request.parameters[-1]
        fd = await self._open({**_scope(request.parameters[:depth]), "name": name})
        return Reply(streamed=await _send(request, fd, name))

    async def stream(self, depth: int, request: Request) -> Reply:
        """A snapshot that is made for this download alone: it has no name any more when it is sent."""
        scope = _scope(request.parameters[:depth])
        _, result = await self._link.call("snapshot.make", scope, timeout_s=PATIENCE_S)
        name = msgspec.json.decode(result)["name"]
        header = {**scope, "name": name}
        fd = await self._open(header)
        try:
            await self._link.call("snapshot.delete", header, timeout_s=STALLED_S)
        except BaseException:
            os.close(fd)
            raise
        return Reply(streamed=await _send(request, fd, name))

    async def _open(self, header: dict[str, Any]) -> int:
        _, result = await self._link.call("snapshot.find", header, timeout_s=STALLED_S)
        try:
            path = msgspec.json.decode(result, type=str)
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"Not found: Snapshot {header['name'][:80]} doesn't exist") from None

    # -- uploads

    async def upload(self, depth: int, request: Request) -> Reply:
        one_of("priority", request.query.get("priority", "replica"), _PRIORITIES)
        wait = flag(request.query, "wait", True)
        name = secrets.token_hex(16)
        coming, whole = f"{UPLOADS}/{name}{_COMING}", f"{name}.part"
        if self._uploads >= UPLOADS_MAX:
            raise Overloaded(f"{UPLOADS_MAX} snapshots are being uploaded already; try again later")
        self._uploads += 1
        try:
            await self._receive(request, coming, f"{UPLOADS}/{whole}")
        except BaseException:
            _remove(coming)
            _remove(f"{UPLOADS}/{whole}")
            raise
        finally:
            self._uploads -= 1
        # From here on the file is the store's, which removes it.
        header = {"name": whole, "checksum": request.query.get("checksum"), "wait": wait}
        return await self._call("snapshot.upload", depth, request, header)

    async def _receive(self, request: Request, coming: str, whole: str) -> None:
        """The first file of a multipart body into a new file, which has the name `whole` once it is.

        Raises BadRequest, NoRoom, DeadlineExceeded.
        """
        http = request.stream
        assert isinstance(http, web.BaseRequest)
        try:
            part = await _first_file(http)
            fd = os.open(coming, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)  # as long as this process lives: see _remove_orphans
                await self._copy(part, fd)
                os.rename(coming, whole)
            finally:
                os.close(fd)
        except TimeoutError:
            raise DeadlineExceeded(f"nothing of the upload came for {STALLED_S:g} s") from None
        except (ValueError, aiohttp.ClientPayloadError, web.RequestPayloadError) as problem:
            raise BadRequest(f"the upload is broken: {str(problem)[:200]}") from None
        except OSError as problem:
            if isinstance(problem, ConnectionError):
                raise
            raise NoRoom(f"the upload could not be stored: {problem.strerror}; free some space") from problem

    async def _copy(self, part: aiohttp.BodyPartReader, fd: int) -> None:
        while True:
            async with asyncio.timeout(STALLED_S):
                chunk = await part.read_chunk(_CHUNK_BYTES)
            if not chunk:
                return
            if self._page.node().flags & NodeFlag.DISK_LOW:
                raise NoRoom("no room: the upload would fill the disk; delete data or snapshots, or add room")
            await asyncio.to_thread(_write_all, fd, chunk)


async def _send(request: Request, fd: int, name: str) -> web.StreamResponse:
    """The file as the answer's body. Closes `fd`."""
    http = request.stream
    assert isinstance(http, web.BaseRequest)
    try:
        response = web.StreamResponse()
        response.content_type = "application/octet-stream"
        response.content_length = left = os.fstat(fd).st_size
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        response.headers["X-Request-Id"] = request.id
        await response.prepare(http)
        offset = 0
        while left:
            chunk = await asyncio.to_thread(os.pread, fd, min(left, _CHUNK_BYTES), offset)
            if not chunk:
                raise ConnectionResetError("the snapshot became shorter while it was sent")
            async with asyncio.timeout(STALLED_S):
                await response.write(chunk)
            offset, left = offset + len(chunk), left - len(chunk)
        await response.write_eof()
    except TimeoutError:
        # The head is gone already: only a broken connection can say that the rest is missing.
        raise ConnectionResetError(f"the client took nothing for {STALLED_S:g} s") from None
    finally:
        os.close(fd)
    return response


async def _first_file(http: web.BaseRequest) -> aiohttp.BodyPartReader:
    if not http.content_type.startswith("multipart/"):
        raise BadRequest("header Content-Type: expected multipart/form-data with a field `snapshot`")
    try:
        async with asyncio.timeout(STALLED_S):
            part = await (await http.multipart()).next()
    except (ValueError, HttpProcessingError) as problem:  # no boundary, a broken header
        raise BadRequest(f"the multipart body is broken: {str(problem)[:200]}") from None
    if not isinstance(part, aiohttp.BodyPartReader):
        raise BadRequest("the upload has no field `snapshot` with the file")
    return part


def _scope(parameters: tuple[str, ...]) -> dict[str, Any]:
    """What the path says a snapshot is of. Raises BadRequest for a shard that is no number."""
    scope: dict[str, Any] = dict(zip(("collection", "shard"), parameters, strict=False))
    shard = scope.get("shard")
    if shard is not None:
        if not (shard.isascii() and shard.isdigit() and len(shard) < 10):
            raise BadRequest(f"path: shard id {shard[:40]!r} is not a number")
        scope["shard"] = int(shard)
    return scope


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _remove_orphans(folder: Path) -> None:
    """What fronts were receiving when they died: nobody holds its lock any more."""
    for path in folder.glob(f"*{_COMING}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # done, or removed by another front that starts
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(str(path))
        except BlockingIOError:
            continue  # another front is still at it
        finally:
            os.close(fd)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return  # it never began, or the store has taken it
