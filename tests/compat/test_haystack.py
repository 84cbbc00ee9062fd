"""qdrant-haystack's normal round trip: against the agent as against qdrant-client's local mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("haystack_integrations.document_stores.qdrant")

from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from tests.compat.embeddings import DIM, embed
from tests.running.agent import RunningAgent

pytestmark = [pytest.mark.compat, pytest.mark.timeout(120)]

COLOURS = ("red", "green", "blue")


def _documents() -> list[Document]:
    texts = [f"{COLOURS[i % 3]} animal number {i}" for i in range(25)]
    return [
        Document(
            id=f"document-{i}",
            content=text,
            embedding=embed(text),
            meta={
                "number": i,
                "colour": COLOURS[i % 3],
                "when": f"2024-03-{i + 1:02}T00:00:00",
                "half": i / 2,
            },
        )
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def stores(shared_agent: RunningAgent, collection_name: str) -> Iterator[list[QdrantDocumentStore]]:
    options: dict[str, Any] = {"index": collection_name, "embedding_dim": DIM, "recreate_index": True}
    made = [
        QdrantDocumentStore(url=shared_agent.url, **options),
        QdrantDocumentStore(location=":memory:", **options),
    ]
    for store in made:
        assert store.write_documents(_documents()) == 25
    yield made
    made[0]._client.delete_collection(collection_name)


def _ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


def test_count_and_read_back(stores: list[QdrantDocumentStore]) -> None:
    assert [store.count_documents() for store in stores] == [25, 25]
    ours, local = (sorted(store.filter_documents(), key=lambda d: d.id) for store in stores)
    assert [d.to_dict() | {"embedding": None} for d in ours] == [
        d.to_dict() | {"embedding": None} for d in local
    ]
    for a, b in zip(ours, local, strict=True):
        assert a.embedding == pytest.approx(b.embedding, abs=1e-5)


FILTERS: list[dict[str, Any]] = [
    {"field": "meta.colour", "operator": "==", "value": "red"},
    {"field": "meta.colour", "operator": "!=", "value": "red"},
    {"field": "meta.number", "operator": ">", "value": 10},
    {"field": "meta.number", "operator": "<=", "value": 3},
    {"field": "meta.half", "operator": ">=", "value": 4.5},
    {"field": "meta.when", "operator": ">=", "value": "2024-03-10T00:00:00"},
    {"field": "meta.colour", "operator": "in", "value": ["red", "blue"]},
    {"field": "meta.colour", "operator": "not in", "value": ["red", "blue"]},
    {"field": "meta.number", "operator": "==", "value": 5},
    {
        "operator": "AND",
        "conditions": [
            {"field": "meta.colour", "operator": "==", "value": "green"},
            {
                "operator": "OR",
                "conditions": [
                    {"field": "meta.number", "operator": "<", "value": 5},
                    {"field": "meta.number", "operator": ">", "value": 20},
                ],
            },
        ],
    },
    {"operator": "NOT", "conditions": [{"field": "meta.colour", "operator": "==", "value": "green"}]},
]


@pytest.mark.parametrize("filters", FILTERS, ids=lambda f: str(f)[:50])
def test_filters(stores: list[QdrantDocumentStore], filters: dict[str, Any]) -> None:
    ours, local = (sorted(_ids(store.filter_documents(filters))) for store in stores)
    assert ours == local
    assert ours


@pytest.mark.parametrize("filters", [None, *FILTERS[:3]], ids=lambda f: str(f)[:50])
def test_embedding_retriever(stores: list[QdrantDocumentStore], filters: Any) -> None:
    embedding = embed("green animal number 7")
    ours, local = (
        QdrantEmbeddingRetriever(document_store=store, filters=filters, top_k=5).run(embedding)["documents"]
        for store in stores
    )
    assert _ids(ours) == _ids(local)
    assert [d.score for d in ours] == pytest.approx([d.score for d in local], abs=1e-4)


def test_duplicates(stores: list[QdrantDocumentStore]) -> None:
    for store in stores:
        with pytest.raises(DuplicateDocumentError):
            store.write_documents(_documents()[:2], DuplicatePolicy.FAIL)
        store.write_documents(_documents()[:2], DuplicatePolicy.SKIP)
        changed = Document(id="document-0", content="new", embedding=embed("new"), meta={})
        store.write_documents([changed], DuplicatePolicy.OVERWRITE)
        assert store.get_documents_by_id(["document-0"])[0].content == "new"
        assert store.count_documents() == 25


def test_deletes(stores: list[QdrantDocumentStore]) -> None:
    for store in stores:
        store.delete_documents(["document-1", "document-2", "unknown"])
        assert store.count_documents() == 23
        store.delete_by_filter({"field": "meta.colour", "operator": "==", "value": "red"})
        assert store.count_documents() == 23 - 9
        store.delete_all_documents()
        assert store.count_documents() == 0


def test_an_existing_collection_is_checked_and_used(stores: list[QdrantDocumentStore]) -> None:
    ours = stores[0]
    again = QdrantDocumentStore(url=ours.url, index=ours.index, embedding_dim=DIM)
    assert again.count_documents() == 25
    with pytest.raises(ValueError, match=r"(?i)dimension|size"):
        QdrantDocumentStore(url=ours.url, index=ours.index, embedding_dim=DIM + 1).count_documents()
