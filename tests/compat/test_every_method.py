"""Every public method of qdrant-client, sync and async, unmodified, that has a dense REST path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("qdrant_client")

from qdrant_client import models as m
from qdrant_client.http.exceptions import UnexpectedResponse

from tests.compat.flavours import FLAVOURS, Flavour, public_methods
from tests.running.agent import RunningAgent

pytestmark = [pytest.mark.compat, pytest.mark.timeout(180)]

DIM = 4
# No REST path for dense vectors, or not a call to a server at all.
ELSEWHERE = {
    "close", "migrate", "set_model", "set_sparse_model", "get_fastembed_vector_params",
    "get_fastembed_sparse_vector_params", "get_embedding_size", "list_text_models", "list_image_models",
    "list_late_interaction_text_models", "list_late_interaction_multimodal_models", "list_sparse_models",
    "get_vector_field_name", "get_sparse_vector_field_name", "add", "query", "query_batch",
    # what refuses by design (api.md, R) has its own test below
    "create_shard_key", "delete_shard_key", "list_shard_keys", "cluster_collection_update", "remove_peer",
}  # fmt: skip


@pytest.fixture(params=FLAVOURS)
def client(request: pytest.FixtureRequest, shared_agent: RunningAgent) -> Iterator[Flavour]:
    made = Flavour(request.param, shared_agent.url, timeout=20)
    yield made
    made.close()


@pytest.fixture
def filled(client: Flavour, collection_name: str) -> Iterator[str]:
    """A collection of ten points: id i has the vector (1, i, 0, 0) and says so."""
    config = m.VectorParams(size=DIM, distance=m.Distance.DOT)
    assert client.create_collection(collection_name, vectors_config=config)
    points = [m.PointStruct(id=i, vector=[1.0, i, 0, 0], payload=_payload(i)) for i in range(10)]
    assert client.upsert(collection_name, points, wait=True).status == m.UpdateStatus.COMPLETED
    yield collection_name
    client.delete_collection(collection_name)


def _payload(i: int) -> dict[str, Any]:
    return {"n": i, "parity": "even" if i % 2 == 0 else "odd"}


def test_every_public_method(client: Flavour, filled: str) -> None:
    """Runs all the steps, then checks that no method of this version of the client was left out."""
    for step in (_collections, _aliases, _reads, _edits, _uploads, _indexes, _snapshots, _cluster):
        step(client, filled)
    assert public_methods() - ELSEWHERE - client.called == set()


def _collections(client: Flavour, filled: str) -> None:
    assert client.collection_exists(filled) is True
    assert client.collection_exists(f"{filled}-not") is False
    assert filled in [c.name for c in client.get_collections().collections]
    info = client.get_collection(filled)
    assert (info.status, info.points_count) == (m.CollectionStatus.GREEN, 10)
    assert info.config.params.vectors == m.VectorParams(size=DIM, distance=m.Distance.DOT)
    assert client.update_collection(
        filled,
        optimizers_config=m.OptimizersConfigDiff(indexing_threshold=12345),
        hnsw_config=m.HnswConfigDiff(m=24),
        metadata={"purpose": "test"},
    )
    config = client.get_collection(filled).config
    assert (config.optimizer_config.indexing_threshold, config.hnsw_config.m) == (12345, 24)
    assert config.metadata == {"purpose": "test"}
    other = f"{filled}-again"
    config = m.VectorParams(size=3, distance=m.Distance.EUCLID)
    assert client.recreate_collection(other, vectors_config={"v": config})
    assert client.recreate_collection(other, vectors_config={"v": config})
    assert client.get_collection(other).config.params.vectors == {"v": config}
    extra = m.DenseVectorNameConfig(dense=m.DenseVectorConfig(size=2, distance=m.Distance.DOT))
    assert client.create_vector_name(other, "w", extra)
    assert set(client.get_collection(other).config.params.vectors) == {"v", "w"}
    assert client.delete_vector_name(other, "w")
    assert set(client.get_collection(other).config.params.vectors) == {"v"}
    assert client.delete_collection(other) is True
    assert client.delete_collection(other) is False


def _aliases(client: Flavour, filled: str) -> None:
    alias, renamed = f"{filled}-alias", f"{filled}-renamed"
    create = m.CreateAlias(collection_name=filled, alias_name=alias)
    assert client.update_collection_aliases([m.CreateAliasOperation(create_alias=create)])
    assert client.count(alias).count == 10
    rename = m.RenameAlias(old_alias_name=alias, new_alias_name=renamed)
    assert client.update_collection_aliases([m.RenameAliasOperation(rename_alias=rename)])
    wanted = m.AliasDescription(collection_name=filled, alias_name=renamed)
    assert client.get_collection_aliases(filled).aliases == [wanted]
    assert wanted in client.get_aliases().aliases
    delete = m.DeleteAlias(alias_name=renamed)
    assert client.update_collection_aliases([m.DeleteAliasOperation(delete_alias=delete)])
    assert client.get_collection_aliases(filled).aliases == []


def _reads(client: Flavour, filled: str) -> None:
    query: Any = [1.0, 1, 0, 0]
    assert [p.id for p in client.query_points(filled, query=query, limit=3).points] == [9, 8, 7]
    answers = client.query_batch_points(filled, [m.QueryRequest(query=query, limit=1)] * 2)
    assert [[p.id for p in answer.points] for answer in answers] == [[9], [9]]
    groups = client.query_points_groups(filled, "parity", query=query, limit=2, group_size=1).groups
    assert [(g.id, [h.id for h in g.hits]) for g in groups] == [("odd", [9]), ("even", [8])]
    records, following = client.scroll(filled, limit=4, with_vectors=True)
    assert [(r.id, r.vector) for r in records] == [(i, [1, i, 0, 0]) for i in range(4)]
    assert following == 4
    assert client.count(filled, m.Filter(must=[_parity("odd")])).count == 5
    facet = client.facet(filled, "parity").hits
    assert [(h.value, h.count) for h in facet] == [("even", 5), ("odd", 5)]
    assert [r.payload for r in client.retrieve(filled, [3, 99, 1])] == [_payload(3), _payload(1)]
    assert len(client.search_matrix_pairs(filled, sample=5, limit=2).pairs) == 10
    assert len(client.search_matrix_offsets(filled, sample=5, limit=2).ids) == 5


def _parity(value: str) -> m.FieldCondition:
    return m.FieldCondition(key="parity", match=m.MatchValue(value=value))


def _edits(client: Flavour, filled: str) -> None:
    client.update_vectors(filled, [m.PointVectors(id=1, vector=[9.0, 9, 9, 9])], wait=True)
    assert client.retrieve(filled, [1], with_vectors=True)[0].vector == [9, 9, 9, 9]
    client.delete_vectors(filled, [""], [2], wait=True)
    assert client.retrieve(filled, [2], with_vectors=True)[0].vector in ({}, None)
    client.set_payload(filled, {"colour": "red"}, points=[1], wait=True)
    assert client.retrieve(filled, [1])[0].payload == _payload(1) | {"colour": "red"}
    client.overwrite_payload(filled, {"only": 1}, points=[1], wait=True)
    client.delete_payload(filled, ["n"], points=[3], wait=True)
    client.clear_payload(filled, [4], wait=True)
    payloads = [r.payload for r in client.retrieve(filled, [1, 3, 4])]
    assert payloads == [{"only": 1}, {"parity": "odd"}, {}]
    operations = [
        m.UpsertOperation(upsert=m.PointsList(points=[m.PointStruct(id=50, vector=[0.0, 0, 0, 1])])),
        m.DeleteOperation(delete=m.FilterSelector(filter=m.Filter(must=[_parity("even")]))),
    ]
    results = client.batch_update_points(filled, operations, wait=True)
    assert [r.status for r in results] == [m.UpdateStatus.COMPLETED] * 2
    assert client.delete(filled, [9], wait=True).status == m.UpdateStatus.COMPLETED
    assert [r.id for r in client.scroll(filled, limit=100)[0]] == [1, 3, 4, 5, 7, 50]


def _uploads(client: Flavour, filled: str) -> None:
    points = [m.PointStruct(id=i, vector=[0.5] * DIM) for i in range(1000, 1300)]
    client.upload_points(filled, points, batch_size=64, wait=True)
    client.upload_collection(filled, [[0.25] * DIM] * 100, ids=range(2000, 2100), wait=True)
    assert client.count(filled, m.Filter(must=[m.HasIdCondition(has_id=[1000, 1299, 2099])])).count == 3


def _indexes(client: Flavour, filled: str) -> None:
    client.create_payload_index(filled, "parity", m.PayloadSchemaType.KEYWORD, wait=True)
    params = m.IntegerIndexParams(type=m.IntegerIndexType.INTEGER, lookup=True, range=False)
    client.create_payload_index(filled, "n", params, wait=True)
    schema = client.get_collection(filled).payload_schema
    assert {k: v.data_type for k, v in schema.items()} == {"parity": "keyword", "n": "integer"}
    assert (schema["n"].params.lookup, schema["n"].params.range) == (True, False)
    client.delete_payload_index(filled, "n", wait=True)
    assert set(client.get_collection(filled).payload_schema) == {"parity"}


def _snapshots(client: Flavour, filled: str) -> None:
    made = client.create_snapshot(filled)
    assert made.name in [s.name for s in client.list_snapshots(filled)]
    assert made.size > 0
    whole = client.create_full_snapshot()
    assert whole.name in [s.name for s in client.list_full_snapshots()]
    shard = client.create_shard_snapshot(filled, 0)
    assert shard.name in [s.name for s in client.list_shard_snapshots(filled, 0)]
    # Recovery from a place that the caller names would make the agent fetch for strangers.
    for recover in (
        lambda: client.recover_snapshot(filled, "http://169.254.169.254/snapshot"),
        lambda: client.recover_shard_snapshot(filled, 0, "file:///etc/passwd"),
    ):
        with pytest.raises(UnexpectedResponse) as refused:
            recover()  # type: ignore[no-untyped-call]
        assert refused.value.status_code in (400, 403, 404)
    assert client.delete_snapshot(filled, made.name, wait=True)
    assert client.delete_full_snapshot(whole.name, wait=True)
    assert client.delete_shard_snapshot(filled, 0, shard.name, wait=True)
    assert client.list_snapshots(filled) == []


def _cluster(client: Flavour, filled: str) -> None:
    assert client.info().version.startswith("1.19")
    status = client.cluster_status()
    assert status.status == "enabled"
    assert len(status.peers) == 1
    shards = client.collection_cluster_info(filled)
    assert [s.shard_id for s in shards.local_shards] == [0]
    assert shards.remote_shards == []
    assert client.recover_current_peer() is True
    assert client.get_optimizations(filled) is not None
    assert client.cluster_telemetry() is not None


DROP_REPLICA = m.DropReplicaOperation(drop_replica=m.Replica(shard_id=0, peer_id=7))
SPARSE = m.SparseVectorParams()
SPARSE_VECTOR = m.SparseVector(indices=[1], values=[1.0])


@pytest.mark.parametrize(
    "refused",
    [
        lambda c, name: c.create_shard_key(name, "k"),
        lambda c, name: c.delete_shard_key(name, "k"),
        lambda c, name: c.remove_peer(12345),
        lambda c, name: c.cluster_collection_update(name, DROP_REPLICA),
        lambda c, name: c.create_collection(f"{name}-s", sparse_vectors_config={"s": SPARSE}),
        lambda c, name: c.upsert(name, [m.PointStruct(id=1, vector={"s": SPARSE_VECTOR})]),
        lambda c, name: c.query_points(name, SPARSE_VECTOR, using="s"),
    ],
)  # fmt: skip
def test_what_shoal_refuses_is_answered_in_words(client: Flavour, filled: str, refused: Any) -> None:
    with pytest.raises(UnexpectedResponse) as error:
        refused(client, filled)
    assert error.value.status_code == 400
    assert b'"error"' in error.value.content


def test_grpc_is_answered_in_words(shared_agent: RunningAgent) -> None:
    """prefer_grpc falls back to nothing by itself: the user must see why it can't work."""
    from qdrant_client import QdrantClient

    client = QdrantClient(url=shared_agent.url, grpc_port=shared_agent.port, prefer_grpc=True, timeout=5)
    with pytest.raises(Exception) as error:  # noqa: PT011  (grpc's own type is not importable everywhere)
        client.get_collections()
    assert str(error.value)
    client.close()
