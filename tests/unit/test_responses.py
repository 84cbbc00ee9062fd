"""Answers: what of them counts as being in memory, and for how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agent.front.responses import Unsent, WholeResponse

BODY = b"x" * 1000


class _Taking:
    """A client's connection that takes all at once, and remembers what else was unsent then."""

    def __init__(self, unsent: Unsent, *, closing: bool = False) -> None:
        self._unsent, self._closing = unsent, closing
        self.seen: list[int] = []

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes) -> None:
        self.seen.append(self._unsent.bytes_)

    def get_write_buffer_size(self) -> int:
        return 0


def _request(transport: _Taking) -> Any:
    return SimpleNamespace(keep_alive=True, transport=transport, method="GET", version=(1, 1))


async def test_an_answer_counts_while_it_is_sent() -> None:
    unsent = Unsent()
    transport = _Taking(unsent)
    await WholeResponse(BODY, unsent=unsent).prepare(_request(transport))
    assert transport.seen == [len(BODY)]
    assert unsent.bytes_ == 0


async def test_an_answer_to_nobody_does_not_count() -> None:
    unsent = Unsent()
    with pytest.raises(ConnectionResetError):
        await WholeResponse(BODY, unsent=unsent).prepare(_request(_Taking(unsent, closing=True)))
    assert unsent.bytes_ == 0


def test_an_answer_that_is_never_sent_does_not_count() -> None:
    """Its request may be cancelled before."""
    unsent = Unsent()
    WholeResponse(BODY, unsent=unsent)
    assert unsent.bytes_ == 0
