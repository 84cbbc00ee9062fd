"""Clients for the compatibility tests, and pairs of local mode and agent with the same points."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.running.agent import RunningAgent

# Tests of the tests: both sides are local mode, so every comparison must hold without any agent.
AGAINST_ITSELF = os.environ.get("COMPAT_AGAINST") == "local"


@pytest.fixture(scope="session")
def remote(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The unmodified client, connected to the shared agent."""
    qdrant_client = pytest.importorskip("qdrant_client")  # `make test-long` installs it
    if AGAINST_ITSELF:
        yield qdrant_client.QdrantClient(":memory:")
        return
    agent: RunningAgent = request.getfixturevalue("shared_agent")
    client = qdrant_client.QdrantClient(url=agent.url, timeout=30)
    yield client
    client.close()


@pytest.fixture(scope="session")
def make_pair(remote: Any) -> Iterator[Callable[..., Any]]:
    """`make_pair(world)`: the world's points in local mode and in the agent."""
    from qdrant_client import QdrantClient

    from tests.compat.comparing import Pair
    from tests.compat.worlds import INDEXES, World

    made: list[str] = []

    def make(world: World, *, empty: bool = False) -> Pair:
        name = f"w{world.seed}-{secrets.token_hex(4)}"
        made.append(name)
        local = QdrantClient(":memory:")
        for client in (local, remote):
            client.create_collection(name, vectors_config=world.vectors, shard_number=world.shards)
            if not empty:
                client.upsert(name, points=world.points, wait=True)
        for field, schema in INDEXES.items() if world.indexed else ():
            remote.create_payload_index(name, field, field_schema=schema, wait=True)
        return Pair(local, remote, name, world.seed)

    yield make
    for name in made:
        remote.delete_collection(name)
