"""llama-index-vector-stores-qdrant's normal round trip: against the agent as against local mode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("llama_index.vector_stores.qdrant")

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient

from tests.compat.embeddings import embed
from tests.running.agent import RunningAgent

pytestmark = [pytest.mark.compat, pytest.mark.timeout(120)]

COLOURS = ("red", "green", "blue")
NODE_ID = "00000000-0000-4000-8000-{:012}"


def _nodes() -> list[TextNode]:
    nodes = []
    for i in range(24):
        text = f"{COLOURS[i % 3]} animal number {i}"
        node = TextNode(text=text, id_=NODE_ID.format(i), embedding=embed(text))
        node.metadata = {"number": i, "colour": COLOURS[i % 3], "half": i / 2, "tags": ["x", f"t{i % 4}"]}
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc-{i // 6}")
        nodes.append(node)
    return nodes


@pytest.fixture
def stores(shared_agent: RunningAgent, collection_name: str) -> Iterator[list[QdrantVectorStore]]:
    """The same nodes in the agent and in local mode."""
    remote = QdrantClient(url=shared_agent.url)
    made = [
        QdrantVectorStore(collection_name, client=client) for client in (remote, QdrantClient(":memory:"))
    ]
    for store in made:
        assert len(store.add(_nodes())) == 24
    yield made
    remote.delete_collection(collection_name)
    remote.close()


def _alike(stores: list[QdrantVectorStore], query: VectorStoreQuery) -> list[str]:
    ours, local = (store.query(query) for store in stores)
    assert ours.ids == local.ids
    assert ours.similarities == pytest.approx(local.similarities, abs=1e-4)
    assert [n.get_content() for n in ours.nodes] == [n.get_content() for n in local.nodes]
    return list(ours.ids)


def _query(text: str, *filters: MetadataFilter, condition: Any = FilterCondition.AND) -> VectorStoreQuery:
    return VectorStoreQuery(
        query_embedding=embed(text),
        similarity_top_k=6,
        filters=MetadataFilters(filters=list(filters), condition=condition) if filters else None,
    )


def test_query(stores: list[QdrantVectorStore]) -> None:
    assert _alike(stores, _query("green animal number 7"))[0] == NODE_ID.format(7)


@pytest.mark.parametrize(
    ("key", "operator", "value"),
    [
        ("colour", FilterOperator.EQ, "red"),
        ("number", FilterOperator.EQ, 4),
        ("half", FilterOperator.EQ, 2.5),
        ("colour", FilterOperator.NE, "red"),
        ("number", FilterOperator.GT, 9),
        ("number", FilterOperator.LTE, 9),
        ("colour", FilterOperator.IN, ["red", "blue"]),
        ("colour", FilterOperator.NIN, ["red", "blue"]),
        ("tags", FilterOperator.IN, ["t1", "t2"]),
        ("colour", FilterOperator.TEXT_MATCH, "green"),
        ("nothing", FilterOperator.IS_EMPTY, None),
    ],
)
def test_filters(stores: list[QdrantVectorStore], key: str, operator: FilterOperator, value: Any) -> None:
    found = _alike(stores, _query("animal", MetadataFilter(key=key, operator=operator, value=value)))
    assert found


@pytest.mark.parametrize("condition", [FilterCondition.AND, FilterCondition.OR, FilterCondition.NOT])
def test_conditions(stores: list[QdrantVectorStore], condition: FilterCondition) -> None:
    red = MetadataFilter(key="colour", value="red")
    early = MetadataFilter(key="number", operator=FilterOperator.LT, value=9)
    _alike(stores, _query("red animal number 3", red, early, condition=condition))


def test_only_some_documents_or_nodes(stores: list[QdrantVectorStore]) -> None:
    query = _query("animal")
    query.doc_ids = ["doc-1"]
    assert set(_alike(stores, query)) == {NODE_ID.format(i) for i in range(6, 12)}
    query = _query("animal")
    query.node_ids = [NODE_ID.format(i) for i in (1, 2)]
    assert set(_alike(stores, query)) == {NODE_ID.format(1), NODE_ID.format(2)}


def test_get_and_delete(stores: list[QdrantVectorStore]) -> None:
    for store in stores:
        assert len(store.get_nodes(node_ids=[NODE_ID.format(3)])) == 1
        store.delete("doc-0")
        assert store.get_nodes(node_ids=[NODE_ID.format(3)]) == []
        store.delete_nodes([NODE_ID.format(8)])
        red = MetadataFilters(filters=[MetadataFilter(key="colour", value="red")])
        store.delete_nodes(filters=red)
    ours, local = (sorted(n.node_id for n in store.get_nodes(node_ids=_all())) for store in stores)
    assert ours == local
    for store in stores:
        store.clear()


def _all() -> list[str]:
    return [NODE_ID.format(i) for i in range(24)]


def test_async(shared_agent: RunningAgent, collection_name: str) -> None:
    async def round_trip() -> list[str]:
        client = AsyncQdrantClient(url=shared_agent.url)
        store = QdrantVectorStore(collection_name, aclient=client)
        await store.async_add(_nodes())
        found = await store.aquery(_query("blue animal number 5"))
        await store.adelete("doc-0")
        await client.delete_collection(collection_name)
        await client.close()
        return list(found.ids)

    assert asyncio.run(round_trip())[0] == NODE_ID.format(5)
