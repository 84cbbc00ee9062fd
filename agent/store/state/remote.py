"""An acceptor on another node: its calls over the peers' link, and the handlers that serve them there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from agent.link import Answer, Handler, Header
from agent.store.acceptor import Acceptor
from core.consensus import register
from core.consensus.register import Cell, Request
from core.errors import BadRequest
from core.peer_wire import REGISTER
from net.frames import Caller

ANSWER_S = 2.0
WAIT_S = 30.0
"""A watch is asked for anew after this long: who asks may be gone."""

_encode = msgspec.msgpack.Encoder().encode
_decode_cell = msgspec.msgpack.Decoder(Cell).decode


class RemoteVoter:
    """A `Voter` (see quorum.py) on another node. Raises a ShoalError if it can't be reached."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def handle(self, request: Request) -> register.Answer:
        kind, body = REGISTER.encode(request)
        header, answer = await self._caller.call("register", {"kind": kind}, body, timeout_s=ANSWER_S)
        decoded: register.Answer = REGISTER.decode(header["kind"], answer)
        return decoded

    async def keys(self, prefix: str) -> list[str]:
        header, _ = await self._caller.call("register.keys", {"prefix": prefix}, timeout_s=ANSWER_S)
        return [str(key) for key in header["keys"]]

    async def wait_accepted(self, key: str, after_version: int) -> Cell:
        asked = {"key": key, "after": after_version}
        while True:
            header, body = await self._caller.call("register.wait", asked, timeout_s=WAIT_S + ANSWER_S)
            if header["came"]:
                return _decode_cell(body)


class _Keys(msgspec.Struct, frozen=True):
    prefix: str


class _Wait(msgspec.Struct, frozen=True):
    key: str
    after: int


class RegisterCalls:
    """Serves this node's acceptor to its peers."""

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor

    def handlers(self) -> Mapping[str, Handler]:
        return {"register": self._handle, "register.keys": self._keys, "register.wait": self._wait}

    async def _handle(self, header: Header, body: bytes, deadline: float) -> Answer:
        request = REGISTER.decode(str(header.get("kind")), body)
        if not isinstance(request, Request):
            raise BadRequest(f"{type(request).__name__} is an answer, not a request")
        kind, answer = REGISTER.encode(await self._acceptor.handle(request))
        return {"kind": kind}, answer

    async def _keys(self, header: Header, body: bytes, deadline: float) -> Answer:
        asked = msgspec.convert(header, _Keys)
        return {"keys": await self._acceptor.keys(asked.prefix)}, b""

    async def _wait(self, header: Header, body: bytes, deadline: float) -> Answer:
        asked = msgspec.convert(header, _Wait)
        try:
            async with asyncio.timeout(WAIT_S):
                return {"came": True}, _encode(await self._acceptor.wait_accepted(asked.key, asked.after))
        except TimeoutError:
            return {"came": False}, b""
