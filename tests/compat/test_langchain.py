"""langchain-qdrant's normal round trip: against the agent as against qdrant-client's local mode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain_qdrant")

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from qdrant_client import QdrantClient
from qdrant_client import models as m

from tests.compat.embeddings import DIM, embed
from tests.running.agent import RunningAgent

pytestmark = [pytest.mark.compat, pytest.mark.timeout(120)]

COLOURS = ("red", "green", "blue", "grey")
ANIMALS = ("fox", "dog", "cat", "owl", "bee")
TEXTS = [f"{COLOURS[i // 5]} {ANIMALS[i % 5]} number {i}" for i in range(20)]
METADATA: list[dict[str, Any]] = [{"number": i, "even": i % 2 == 0} for i in range(len(TEXTS))]


class WordEmbeddings(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [embed(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return embed(text)


@pytest.fixture(params=["", "named"])
def stores(
    shared_agent: RunningAgent, collection_name: str, request: pytest.FixtureRequest
) -> Iterator[list[QdrantVectorStore]]:
    """The same texts in the agent and in local mode, as `from_texts` puts them there."""
    made = []
    for place in ({"url": shared_agent.url}, {"location": ":memory:"}):
        store = QdrantVectorStore.from_texts(
            TEXTS,
            WordEmbeddings(),
            metadatas=METADATA,
            ids=list(range(len(TEXTS))),
            collection_name=collection_name,
            vector_name=request.param,
            **place,
        )
        made.append(store)
    yield made
    made[0].client.delete_collection(collection_name)


def _alike(stores: list[QdrantVectorStore], method: str, *arguments: Any, **named: Any) -> Any:
    """The same documents and scores from both."""
    ours, local = (getattr(store, method)(*arguments, **named) for store in stores)
    assert _flat(ours) == _flat(local)
    return ours


def _flat(found: list[Any]) -> list[Any]:
    documents = [hit[0] if isinstance(hit, tuple) else hit for hit in found]
    return [(document.page_content, document.metadata.get("number")) for document in documents]


def test_similarity_search(stores: list[QdrantVectorStore]) -> None:
    found = _alike(stores, "similarity_search", "red fox number 0", k=3)
    assert found[0].page_content == "red fox number 0"


def test_similarity_search_with_scores(stores: list[QdrantVectorStore]) -> None:
    ours, local = (s.similarity_search_with_score("green owl number 8", k=5) for s in stores)
    assert [d.page_content for d, _ in ours] == [d.page_content for d, _ in local]
    assert [score for _, score in ours] == pytest.approx([score for _, score in local], abs=1e-4)


def test_filter_threshold_and_offset(stores: list[QdrantVectorStore]) -> None:
    even = m.Filter(must=[m.FieldCondition(key="metadata.even", match=m.MatchValue(value=True))])
    found = _alike(stores, "similarity_search", "blue dog", k=4, filter=even, offset=1)
    assert all(document.metadata["even"] for document in found)
    _alike(stores, "similarity_search_with_score", "blue dog number 11", k=10, score_threshold=0.5)


def test_max_marginal_relevance(stores: list[QdrantVectorStore]) -> None:
    _alike(stores, "max_marginal_relevance_search", "grey cat", k=4, fetch_k=12, lambda_mult=0.4)


def test_add_get_and_delete(stores: list[QdrantVectorStore]) -> None:
    for store in stores:
        ids = store.add_documents([Document(page_content="a white whale", metadata={"number": 99})])
        assert [d.page_content for d in store.get_by_ids(ids)] == ["a white whale"]
        assert store.similarity_search("a white whale", k=1)[0].metadata["number"] == 99
        assert store.delete(ids) is True
        assert store.get_by_ids(ids) == []


def test_as_retriever(stores: list[QdrantVectorStore]) -> None:
    ours, local = (s.as_retriever(search_kwargs={"k": 3}).invoke("blue bee") for s in stores)
    assert [d.page_content for d in ours] == [d.page_content for d in local]


def test_async_search(stores: list[QdrantVectorStore]) -> None:
    ours, local = (asyncio.run(s.asimilarity_search("grey owl", k=3)) for s in stores)
    assert [d.page_content for d in ours] == [d.page_content for d in local]


def test_an_existing_collection_is_checked_and_used(shared_agent: RunningAgent, collection_name: str) -> None:
    client = QdrantClient(url=shared_agent.url)
    config = {"": m.VectorParams(size=DIM, distance=m.Distance.COSINE)}
    client.create_collection(collection_name, vectors_config=config)
    store = QdrantVectorStore(client, collection_name, WordEmbeddings(), retrieval_mode=RetrievalMode.DENSE)
    store.add_texts(TEXTS)
    again = QdrantVectorStore.from_existing_collection(
        collection_name, embedding=WordEmbeddings(), url=shared_agent.url
    )
    assert again.similarity_search("green bee number 9", k=1)[0].page_content == "green bee number 9"
    client.delete_collection(collection_name)
    client.close()
