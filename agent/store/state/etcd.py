"""The StateStore in etcd: ranges, transactions on mod_revision and watches of its v3 JSON gateway.

What a key holds is wrapped with its writer's tag, so a write whose answer was lost finds itself again. A
deleted key keeps an empty wrap: its version must not begin anew, or a late write could take it for new.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Sequence
from typing import Any, TypeVar

import aiohttp
import msgspec

from agent.store.state.port import VersionConflict, Versioned
from core.errors import Damaged, Unavailable

CALL_TIMEOUT_S = 5.0
TRY_TIMEOUT_S = 1.5
"""One server's time to answer. To a stopped one connecting succeeds, so only a deadline tells."""
PAUSE_S = 0.1
WATCH_S = 30.0
"""A watch is begun anew after this time: a connection that was cut silently says nothing."""
LIST_PAGE = 200
ANSWER_BYTES_MAX = 64 << 20

# What etcd says of tokens that it forgot, and of users that may not: its gRPC codes don't tell them apart.
_TOKEN_REFUSED = ("invalid auth token", "revision of auth store is old")
_NOT_ALLOWED = ("authentication failed", "permission denied", "user name is empty", "is not enabled")
_T = TypeVar("_T")
Doubts = list[str]  # why a call that failed may yet take effect


class _Wrapped(msgspec.Struct, frozen=True, array_like=True):
    tag: str
    value: bytes | None


class _Header(msgspec.Struct, frozen=True):
    revision: int = 0


class _KeyValue(msgspec.Struct, frozen=True):
    key: bytes = b""
    mod_revision: int = 0
    value: bytes = b""


class _Range(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    kvs: tuple[_KeyValue, ...] = ()
    more: bool = False


class _Response(msgspec.Struct, frozen=True):
    response_range: _Range = _Range()


class _Txn(msgspec.Struct, frozen=True):
    header: _Header = _Header()
    succeeded: bool = False
    responses: tuple[_Response, ...] = ()


class _Token(msgspec.Struct, frozen=True):
    token: str


class _Problem(msgspec.Struct, frozen=True):
    message: str = ""


class _Event(msgspec.Struct, frozen=True):
    kv: _KeyValue = _KeyValue()


class _Events(msgspec.Struct, frozen=True):
    events: tuple[_Event, ...] = ()
    canceled: bool = False


class _Watched(msgspec.Struct, frozen=True):
    result: _Events = _Events()


class _NotAnswered(Exception):
    """One server's failure. `unsent`: it certainly had no effect. `final`: nor will another try help."""

    def __init__(
        self, why: str, *, unsent: bool = False, token_refused: bool = False, final: bool = False
    ) -> None:
        super().__init__(why)
        self.unsent = unsent
        self.token_refused = token_refused
        self.final = final


class EtcdState:
    """A StateStore on the etcd servers at `urls`, under the prefix of one cluster. Use as `async with`.

    Servers are tried in turn, from the one that answered last. `writer` is new at each start of a process.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        cluster: str,
        writer: str,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._prefix = f"shoal/{cluster}/"
        self._writer = writer
        self._writes = 0
        self._login = (user, password) if user is not None else None
        self._tokens: dict[str, str] = {}  # of each server
        self._tls = tls
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> EtcdState:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls or True), read_bufsize=1 << 20
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def read(self, key: str) -> Versioned:
        return (await self._read(key))[0]

    async def compare_and_set(self, key: str, version: int, value: bytes) -> int | VersionConflict:
        return await self._write(key, version, value)

    async def delete(self, key: str, version: int) -> int | VersionConflict:
        return await self._write(key, version, None)

    async def watch(self, key: str, after_version: int) -> Versioned:
        while True:
            found, revision = await self._read(key)
            if found.version > after_version:
                return found
            # A stream that breaks or ends is no news: what counts is read again.
            try:
                async with asyncio.timeout(WATCH_S):
                    await self._await_event(key, revision + 1)
            except TimeoutError:
                continue
            except _NotAnswered:
                await asyncio.sleep(PAUSE_S)

    async def list(self, prefix: str) -> dict[str, Versioned]:
        begin, end = self._key(prefix), _after(self._key(prefix))
        listed: dict[str, Versioned] = {}
        while True:
            page = await self._call(
                "kv/range", {"key": _base64(begin), "range_end": _base64(end), "limit": LIST_PAGE}, _Range
            )
            for kv in page.kvs:
                found = _unwrap(kv)[0]
                if found.value is not None:
                    listed[kv.key.decode().removeprefix(self._prefix)] = found
            if not page.more:
                return listed
            begin = page.kvs[-1].key + b"\0"

    def _key(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    async def _read(self, key: str) -> tuple[Versioned, int]:
        """The key, and the revision of the whole store at which it was so."""
        answer = await self._call("kv/range", {"key": _base64(self._key(key))}, _Range)
        return _first(answer)[0], answer.header.revision

    async def _write(self, key: str, version: int, value: bytes | None) -> int | VersionConflict:
        """The same transaction until it is answered: it takes effect once, and knows itself by its tag."""
        self._writes += 1
        tag = f"{self._writer}/{self._writes}"
        name = _base64(self._key(key))
        wrapped = _base64(msgspec.msgpack.encode(_Wrapped(tag, value)))
        body = {
            "compare": [{"key": name, "target": "MOD", "result": "EQUAL", "mod_revision": version}],
            "success": [{"request_put": {"key": name, "value": wrapped}}],
            "failure": [{"request_range": {"key": name}}],
        }
        doubts: Doubts = []
        answer = await self._call("kv/txn", body, _Txn, doubts)
        if answer.succeeded:
            return answer.header.revision
        current, writer = _first(answer.responses[0].response_range)
        if writer == tag:
            return current.version
        if doubts:
            raise Unavailable(
                f"register {key}: {doubts[0]}, and the key has changed since: nobody knows if this write "
                "took effect; read it again"
            )
        return VersionConflict(current)

    async def _await_event(self, key: str, revision: int) -> None:
        body = {"create_request": {"key": _base64(self._key(key)), "start_revision": revision}}
        url = self._urls[0]
        try:
            async with self._opened().post(
                f"{url}/v3/watch",
                json=body,
                headers=await self._headers(url),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=TRY_TIMEOUT_S),
            ) as response:
                async for line in response.content:
                    got = msgspec.json.decode(line, type=_Watched, strict=False).result
                    if got.events or got.canceled:
                        return
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise _NotAnswered(_words(e)) from None
        raise _NotAnswered("the watch ended")

    async def _call(
        self, path: str, body: dict[str, Any], kind: type[_T], doubts: Doubts | None = None
    ) -> _T:
        """The first answer of any server. `doubts` gathers failures after which the call may take effect."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._timeout_s
        problem = ""
        while (left_s := until_s - loop.time()) > 0:
            url = self._urls[0]
            try:
                async with asyncio.timeout(min(left_s, TRY_TIMEOUT_S)):
                    return await self._post(url, path, body, kind)
            except TimeoutError:
                silence = f"etcd at {url} did not answer in {min(left_s, TRY_TIMEOUT_S):.1f} s"
                _doubt(doubts, silence)
                # A try that the deadline cut short says less than the one before it.
                problem = problem if problem and left_s < TRY_TIMEOUT_S else silence
            except _NotAnswered as e:
                problem = f"etcd at {url}: {e}"
                if not e.unsent:
                    _doubt(doubts, problem)
                if e.final:
                    raise Unavailable(f"the cluster's state is unavailable: {problem}") from None
                if e.token_refused and self._tokens.pop(url, ""):
                    continue  # it has expired, or etcd was restarted: log in again
            self._urls = [*self._urls[1:], url]
            await asyncio.sleep(min(PAUSE_S, max(0.0, until_s - loop.time())))
        raise Unavailable(f"the cluster's state is unavailable for {self._timeout_s:g} s: {problem}")

    async def _post(self, url: str, path: str, body: dict[str, Any], kind: type[_T]) -> _T:
        headers = await self._headers(url) if path != "auth/authenticate" else {}
        try:
            async with self._opened().post(
                f"{url}/v3/{path}", json=body, headers=headers, allow_redirects=False
            ) as response:
                content = await response.content.read(ANSWER_BYTES_MAX)
                while not response.content.at_eof() and len(content) < ANSWER_BYTES_MAX:
                    content += await response.content.read(ANSWER_BYTES_MAX - len(content))
                if response.status != 200:
                    raise _refusal(response.status, content)
                return msgspec.json.decode(content, type=kind, strict=False)
        except aiohttp.ClientConnectorError as e:
            raise _NotAnswered(_words(e), unsent=True) from None
        except (aiohttp.ClientError, OSError) as e:
            raise _NotAnswered(_words(e)) from None
        except msgspec.DecodeError as e:
            raise _NotAnswered(f"its answer cannot be read: {e}") from None

    async def _headers(self, url: str) -> dict[str, str]:
        if self._login is None:
            return {}
        if url not in self._tokens:
            user, password = self._login
            body = {"name": user, "password": password or ""}
            try:
                self._tokens[url] = (await self._post(url, "auth/authenticate", body, _Token)).token
            except _NotAnswered as e:
                raise _NotAnswered(f"user {user} cannot log in: {e}", unsent=True, final=e.final) from None
        return {"Authorization": self._tokens[url]}

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise Unavailable("the connection to etcd is closed")
        return self._session


def _doubt(doubts: Doubts | None, problem: str) -> None:
    if doubts is not None:
        doubts.append(problem)


def _refusal(status: int, content: bytes) -> _NotAnswered:
    try:
        problem = msgspec.json.decode(content, type=_Problem, strict=False)
    except msgspec.DecodeError:
        return _NotAnswered(f"HTTP {status}: {content[:200].decode(errors='replace')}")
    refused = any(words in problem.message for words in _TOKEN_REFUSED)
    final = any(words in problem.message for words in _NOT_ALLOWED)
    return _NotAnswered(
        problem.message or f"HTTP {status}", unsent=refused or final, token_refused=refused, final=final
    )


def _words(e: Exception) -> str:
    return str(e) or type(e).__name__


def _first(answer: _Range) -> tuple[Versioned, str]:
    return _unwrap(answer.kvs[0]) if answer.kvs else (Versioned(None, 0), "")


def _unwrap(kv: _KeyValue) -> tuple[Versioned, str]:
    """The value at its version, and the tag of who wrote it."""
    try:
        wrapped = msgspec.msgpack.decode(kv.value, type=_Wrapped)
    except msgspec.DecodeError as e:
        key = kv.key.decode(errors="replace")
        raise Damaged(f"etcd's key {key!r} was not written by Shoal ({e}): put back what was there") from None
    return Versioned(wrapped.value, kv.mod_revision), wrapped.tag


def _after(prefix: bytes) -> bytes:
    """The end of the range of all keys with this prefix, which is never empty and never ends in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
