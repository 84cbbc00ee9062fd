"""The client's two flavours behind one way of calling, which remembers what was called."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from qdrant_client import AsyncQdrantClient, QdrantClient

FLAVOURS = ("sync", "async")


class Flavour:
    """`flavour.upsert(…)` calls the sync client, or runs the async one's coroutine to its end."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.called: set[str] = set()
        self._loop = asyncio.new_event_loop()
        make = AsyncQdrantClient if kind == "async" else QdrantClient
        self.client: Any = make(url=url, **options)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        target = getattr(self.client, method)

        def call(*arguments: Any, **named: Any) -> Any:
            self.called.add(method)
            answer = target(*arguments, **named)
            return self._loop.run_until_complete(answer) if inspect.isawaitable(answer) else answer

        return call

    def close(self) -> None:
        answer = self.client.close()
        if inspect.isawaitable(answer):
            self._loop.run_until_complete(answer)
        self._loop.close()


def public_methods() -> set[str]:
    """All that qdrant-client offers, so that a new version's new method is noticed."""
    found = inspect.getmembers(QdrantClient, inspect.isfunction)
    return {name for name, _ in found if not name.startswith("_")}
