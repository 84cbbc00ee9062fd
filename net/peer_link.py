"""Connections between nodes: each side proves that it holds the cluster's secret, then frames are sealed.

The caller says Hello, the listener answers Welcome with its proof, the caller sends its own, and only then is
anything else read. A proof covers both nonces, so that what was overheard can't be played again; each frame
carries a MAC over its place in the stream, so that none can be added, left out, changed or repeated. Inside
TLS the seal is left out. Nothing here hides what is said: that is what `[tls]` is for.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeVar

import msgspec

from core.errors import ShoalError, Unauthorized
from net.frames import HEAD, STREAM_BYTES, BrokenFrame, Plain, raise_again

WIRE = 1
"""The version of what nodes say to each other. N and N + 1 understand each other."""
GREETING_S = 5.0
HEADER_BYTES_MAX = 16 << 20
BODY_BYTES_MAX = 64 << 20
_GREETING_BYTES_MAX = 4096
_MAC_BYTES = 16
_NONCE_BYTES = 32
_SIZE = struct.Struct("<I")
_PLACE = struct.Struct("<Q")

Role = Literal["store", "front", "console"]


class WireMismatch(ShoalError):
    """The other side speaks a version that is more than one away."""

    code, status = "wire-mismatch", 409

    def __init__(self, mine: int, theirs: int) -> None:
        older = "this node" if mine < theirs else "the other node"
        super().__init__(
            f"wire version {theirs} of the other node and {mine} of this one are more than one apart: "
            f"upgrade {older} step by step"
        )


@dataclass(frozen=True, slots=True)
class Trust:
    """What makes a peer one of us: a secret (old and new, while it is rotated), and TLS if there is any.

    Without a secret the certificates alone must prove it: contexts that demand the cluster's CA.
    """

    secrets: tuple[bytes, ...] = ()
    client_tls: ssl.SSLContext | None = None
    server_tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if not self.secrets and not (_demands(self.client_tls) and _demands(self.server_tls)):
            raise Unauthorized("nodes need the cluster's secret_file, or [tls] with a ca, to know each other")


def _demands(context: ssl.SSLContext | None) -> bool:
    return context is not None and context.verify_mode is ssl.CERT_REQUIRED


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is at one end. `cluster`: its uuid; empty for a console, or a node that belongs to none yet."""

    node: str
    role: Role
    cluster: str = ""
    wire: int = WIRE


class _Hello(msgspec.Struct, frozen=True, array_like=True, tag="shoal-hello"):
    who: Identity
    secret_id: bytes
    nonce: bytes


class _Welcome(msgspec.Struct, frozen=True, array_like=True, tag="shoal-welcome"):
    who: Identity
    nonce: bytes


class _Proof(msgspec.Struct, frozen=True, array_like=True, tag="shoal-proof"):
    proof: bytes


class _Ready(msgspec.Struct, frozen=True, array_like=True, tag="shoal-ready"):
    pass


class _Refusal(msgspec.Struct, frozen=True, array_like=True, tag="shoal-refusal"):
    code: str
    text: str


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(_Hello | _Welcome | _Proof | _Ready | _Refusal).decode
_M = TypeVar("_M", _Hello, _Welcome, _Proof, _Ready)


class UnknownSecret(Unauthorized):
    """The listener does not know the secret that was meant; another may be the one."""

    code = "unknown-secret"


class Proved(Plain):
    """Frames as they are, inside TLS, with a peer that has proved itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Identity) -> None:
        super().__init__(reader, writer)
        self.peer = peer


class Sealed(Proved):
    """Frames with a MAC each, keyed by the greeting and counted in each direction."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: Identity,
        keys: tuple[bytes, bytes],
    ) -> None:
        super().__init__(reader, writer, peer)
        self._read_key, self._write_key = keys
        self._frames_read = self._frames_written = 0

    async def read(self) -> tuple[int, bytes, bytes]:
        head = await self.reader.readexactly(HEAD.size)
        header_size, body_size, number = HEAD.unpack(head)
        if header_size > HEADER_BYTES_MAX or body_size > BODY_BYTES_MAX:
            raise BrokenFrame(f"frame of {header_size} + {body_size} bytes is over the bound")
        mac = await self.reader.readexactly(_MAC_BYTES)
        header = await self.reader.readexactly(header_size)
        body = await self.reader.readexactly(body_size) if body_size else b""
        expected = _frame_mac(self._read_key, self._frames_read, head, header, body)
        if not hmac.compare_digest(mac, expected):
            raise BrokenFrame("a frame does not match its seal")
        self._frames_read += 1
        return number, header, body

    def write(self, number: int, header: bytes, body: bytes) -> None:
        head = HEAD.pack(len(header), len(body), number)
        mac = _frame_mac(self._write_key, self._frames_written, head, header, body)
        self._frames_written += 1
        self.writer.writelines((head, mac, header, body))


async def dial(address: tuple[str, int], me: Identity, trust: Trust, *, source: str | None = None) -> Proved:
    """Connect and prove; `source` is the local address to connect from.

    Raises OSError, Unauthorized, WireMismatch. The caller owns the timeout.
    """
    # The newest comes first. A listener that was not told of it yet refuses it by name.
    for secret in trust.secrets[:-1]:
        try:
            return await _dial(address, me, trust, secret, source)
        except UnknownSecret:
            continue
    return await _dial(address, me, trust, trust.secrets[-1] if trust.secrets else b"", source)


async def _dial(
    address: tuple[str, int], me: Identity, trust: Trust, secret: bytes, source: str | None
) -> Proved:
    reader, writer = await asyncio.open_connection(
        *address,
        limit=STREAM_BYTES,
        ssl=trust.client_tls,
        local_addr=None if source is None else (source, 0),
    )
    try:
        hello = _encode(_Hello(me, _secret_id(secret), secrets.token_bytes(_NONCE_BYTES)))
        _send(writer, hello)
        welcome, told = await _receive(reader, _Welcome)
        _check_wire(me, welcome.who)
        transcript = hello + told
        proof, _ = await _receive(reader, _Proof)
        if not hmac.compare_digest(proof.proof, _mac(secret, b"listener", transcript)):
            raise Unauthorized("the other side does not hold this cluster's secret")
        _send(writer, _encode(_Proof(_mac(secret, b"caller", transcript))))
        await _receive(reader, _Ready)
        keys = _mac(secret, b"to caller", transcript), _mac(secret, b"to listener", transcript)
        return _proved(reader, writer, me, welcome.who, None if trust.client_tls else keys)
    except EOFError:
        writer.close()
        raise ConnectionResetError("the other side ended the connection while it was greeted") from None
    except BaseException:
        writer.close()
        raise


async def greet(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    me: Identity,
    trust: Trust,
    admit: Callable[[Identity], None] = lambda _: None,
) -> Proved:
    """The listener's side; `admit` raises a ShoalError to turn away a peer that has proved itself.

    Raises Unauthorized, WireMismatch, what `admit` raises, OSError, EOFError; then the writer is closed.
    """
    try:
        async with asyncio.timeout(GREETING_S):
            try:
                return await _greet(reader, writer, me, trust, admit)
            except ShoalError as refusal:
                _send(writer, _encode(_Refusal(refusal.code, str(refusal))))
                await writer.drain()
                raise
    except BaseException:
        writer.close()
        raise


async def _greet(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    me: Identity,
    trust: Trust,
    admit: Callable[[Identity], None],
) -> Proved:
    hello, told = await _receive(reader, _Hello)
    _check_wire(me, hello.who)
    known = {_secret_id(secret): secret for secret in trust.secrets or (b"",)}
    secret = known.get(hello.secret_id)
    if secret is None:
        raise UnknownSecret("this node has another secret: give all nodes the same secret_file")
    if len(hello.nonce) != _NONCE_BYTES:
        raise Unauthorized(f"a greeting needs a nonce of {_NONCE_BYTES} bytes")
    welcome = _encode(_Welcome(me, secrets.token_bytes(_NONCE_BYTES)))
    transcript = told + welcome
    _send(writer, welcome)
    _send(writer, _encode(_Proof(_mac(secret, b"listener", transcript))))
    proof, _ = await _receive(reader, _Proof)
    if not hmac.compare_digest(proof.proof, _mac(secret, b"caller", transcript)):
        raise Unauthorized("this caller does not hold the cluster's secret")
    admit(hello.who)
    _send(writer, _encode(_Ready()))
    await writer.drain()
    keys = _mac(secret, b"to listener", transcript), _mac(secret, b"to caller", transcript)
    return _proved(reader, writer, me, hello.who, None if trust.server_tls else keys)


def _proved(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    me: Identity,
    them: Identity,
    keys: tuple[bytes, bytes] | None,
) -> Proved:
    peer = Identity(them.node, them.role, them.cluster, min(me.wire, them.wire))
    return Proved(reader, writer, peer) if keys is None else Sealed(reader, writer, peer, keys)


def _check_wire(me: Identity, them: Identity) -> None:
    if abs(me.wire - them.wire) > 1:
        raise WireMismatch(me.wire, them.wire)


def _send(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(_SIZE.pack(len(message)) + message)


async def _receive(reader: asyncio.StreamReader, kind: type[_M]) -> tuple[_M, bytes]:
    """The next message, which must be of this kind, and its bytes. A refusal is raised again."""
    (size,) = _SIZE.unpack(await reader.readexactly(_SIZE.size))
    if size > _GREETING_BYTES_MAX:
        raise Unauthorized(
            f"a greeting of {size} bytes: this is not a node of Shoal, or not its peer_address"
        )
    told = await reader.readexactly(size)
    try:
        message = _decode(told)
    except msgspec.MsgspecError as problem:
        raise Unauthorized(f"a greeting that cannot be read: {problem}") from None
    if isinstance(message, _Refusal):
        raise_again(message.code, message.text)
    if not isinstance(message, kind):
        raise Unauthorized(f"a greeting out of turn: {type(message).__name__.strip('_')}")
    return message, told


def _secret_id(secret: bytes) -> bytes:
    """Which secret is meant, while two are valid. Of one that is long and random it tells nothing."""
    return blake2b(secret, digest_size=8, person=b"shoal secret id").digest()


def _mac(secret: bytes, purpose: bytes, transcript: bytes) -> bytes:
    key = blake2b(secret, digest_size=32).digest()
    return blake2b(transcript, key=key, digest_size=32, person=purpose).digest()


def _frame_mac(key: bytes, place: int, head: bytes, header: bytes, body: bytes) -> bytes:
    mac = blake2b(_PLACE.pack(place), key=key, digest_size=_MAC_BYTES)
    for part in (head, header, body):
        mac.update(part)
    return mac.digest()
