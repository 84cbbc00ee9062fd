"""What nodes say to each other as bytes: MessagePack of the messages of core/consensus and core/replication.

A message travels as its kind, a short word, and its fields by name: a node that is a version ahead may add
fields that have a default.
"""

from __future__ import annotations

from typing import Any

import msgspec

from core.consensus import register
from core.errors import BadRequest
from core.replication import messages

_REGISTER: dict[str, type[Any]] = {
    "prepare": register.Prepare,
    "accept": register.Accept,
    "adopt": register.Adopt,
    "ask": register.Ask,
    "promise": register.Promise,
    "accepted": register.Accepted,
    "refused": register.Refused,
    "adopted": register.Adopted,
    "told": register.Told,
}
_SHARD: dict[str, type[Any]] = {
    "append": messages.Append,
    "appended": messages.Appended,
    "mismatch": messages.Mismatch,
    "refused": messages.Refused,
    "fetch": messages.Fetch,
    "fetched": messages.Fetched,
    "promise": messages.Promise,
    "promised": messages.Promised,
    "catch-up": messages.CatchUp,
    "caught-up": messages.CaughtUp,
    "level": messages.Level,
    "leveled": messages.Leveled,
    "not-caught-up": messages.NotCaughtUp,
    "activate": messages.Activate,
    "activated": messages.Activated,
    "delete": messages.Delete,
    "deleted": messages.Deleted,
    "ask-persisted": messages.AskPersisted,
    "has-persisted": messages.HasPersisted,
}


class Codec:
    """Messages of one family to (kind, bytes) and back."""

    def __init__(self, kinds: dict[str, type[Any]]) -> None:
        self._kinds = {message: kind for kind, message in kinds.items()}
        self._decoders = {kind: msgspec.msgpack.Decoder(message) for kind, message in kinds.items()}
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, message: object) -> tuple[str, bytes]:
        return self._kinds[type(message)], self._encoder.encode(message)

    def decode(self, kind: str, data: bytes) -> Any:
        """Raises BadRequest if there is no such kind, or the bytes are not one of it."""
        decoder = self._decoders.get(kind)
        if decoder is None:
            raise BadRequest(f"a message of the unknown kind {kind[:40]!r}: the other node may be newer")
        try:
            return decoder.decode(data)
        except msgspec.MsgspecError as problem:
            raise BadRequest(f"a message of kind {kind} cannot be read: {problem}") from None


REGISTER = Codec(_REGISTER)
SHARD = Codec(_SHARD)
