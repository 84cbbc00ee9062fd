"""Collections: what a creation makes, what a patch changes, and what is answered about it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from core.api import cluster, collections, indexes
from core.api.checks import check_name
from core.api.config import CollectionParams, Distance, GraphParams, config_answer, graph_params
from core.api.decode import decode
from core.errors import BadRequest, NotSupported, ShoalError, Unprocessable
from core.tokens import TextOptions


def create(**body: Any) -> CollectionParams:
    return collections.parse_create(decode(collections.CreateCollection, json.dumps(body).encode()))


def update(config: CollectionParams, **body: Any) -> CollectionParams:
    return collections.parse_update(decode(collections.UpdateCollection, json.dumps(body).encode()), config)


def answer(config: CollectionParams) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(msgspec.json.encode(config_answer(config)))
    return shown


UNNAMED = {"size": 3, "distance": "Cosine"}


@pytest.mark.parametrize("vectors", [UNNAMED, {"": UNNAMED}, {"a": UNNAMED, "size": UNNAMED}, {}])
def test_vectors_are_echoed_in_the_form_in_which_they_were_given(vectors: dict[str, Any]) -> None:
    assert answer(create(vectors=vectors))["params"]["vectors"] == vectors


def test_a_vector_without_a_name_has_an_empty_one() -> None:
    assert create(vectors=UNNAMED).vectors == create(vectors={"": UNNAMED}).vectors
    assert create().vectors == {}


def test_every_option_is_echoed() -> None:
    given: dict[str, Any] = {
        "vectors": {
            "a": {
                **UNNAMED,
                "hnsw_config": {"m": 8, "on_disk": True},
                "quantization_config": {"product": {"compression": "x16", "always_ram": True}},
                "on_disk": True,
                "datatype": "float16",
            }
        },
        "shard_number": 3,
        "replication_factor": 9,
        "write_consistency_factor": 2,
        "on_disk_payload": False,
        "sharding_method": "auto",
        "sparse_vectors": {},
        "hnsw_config": {"m": 12, "ef_construct": 64, "full_scan_threshold": 10, "payload_m": 4},
        "wal_config": {"wal_capacity_mb": 1},
        "optimizers_config": {"indexing_threshold": 5, "max_optimization_threads": 1},
        "quantization_config": {"binary": {"encoding": "two_bits"}},
        "strict_mode_config": {"enabled": True, "max_query_limit": 4},
        "metadata": {"owner": {"name": "x"}, "gone": None},
    }
    shown = answer(create(**given))
    params = shown["params"]
    for name in (
        "vectors",
        "shard_number",
        "replication_factor",
        "write_consistency_factor",
        "on_disk_payload",
    ):
        assert params[name] == given[name]
    assert params["sharding_method"] == "auto"
    assert given["hnsw_config"].items() <= shown["hnsw_config"].items()
    assert given["wal_config"].items() <= shown["wal_config"].items()
    assert given["optimizers_config"].items() <= shown["optimizer_config"].items()
    assert shown["quantization_config"] == given["quantization_config"]
    assert shown["strict_mode_config"] == given["strict_mode_config"]
    assert shown["metadata"] == {"owner": {"name": "x"}}


def test_what_was_not_given_is_filled_in_the_answer() -> None:
    shown = answer(create(vectors=UNNAMED))
    assert shown["params"]["shard_number"] == shown["params"]["replication_factor"] == 1
    assert {"m", "ef_construct", "full_scan_threshold", "max_indexing_threads"} <= set(shown["hnsw_config"])
    assert {"default_segment_number", "flush_interval_sec", "deleted_threshold"} <= set(
        shown["optimizer_config"]
    )
    assert "metadata" not in shown


@pytest.mark.compat
@pytest.mark.parametrize(
    "body",
    [
        {"vectors": UNNAMED},
        {"vectors": {"a": {**UNNAMED, "hnsw_config": {"m": 4}}}, "metadata": {"a": 1}},
        {"strict_mode_config": {"enabled": False}, "optimizers_config": {"max_optimization_threads": "auto"}},
        {"hnsw_config": {"graph_dtype": "f16"}, "quantization_config": {"scalar": {"type": "int8"}}},
    ],
)
def test_the_answer_satisfies_the_models_of_qdrant_client(body: dict[str, Any]) -> None:
    models = pytest.importorskip("qdrant_client.models")
    models.CollectionConfig.model_validate(answer(create(**body)))


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ({"vectors": {"size": 0, "distance": "Dot"}}, Unprocessable, "vectors.size"),
        ({"vectors": {"size": 65_537, "distance": "Dot"}}, Unprocessable, "vectors.size"),
        ({"vectors": {"size": 3, "distance": "Cos"}}, BadRequest, "vectors.distance"),
        ({"vectors": {"size": "3", "distance": "Dot"}}, BadRequest, "vectors.size"),
        ({"vectors": {"a": {"size": 3}}}, BadRequest, "distance"),
        ({"vectors": {"a": 3}}, BadRequest, "vectors.a"),
        ({"vectors": {"x" * 256: UNNAMED}}, Unprocessable, "255"),
        (
            {"vectors": {**UNNAMED, "multivector_config": {"comparator": "max_sim"}}},
            NotSupported,
            "multivector",
        ),
        ({"vectors": {**UNNAMED, "hnsw_config": {"ef_construct": 3}}}, Unprocessable, "ef_construct"),
        ({"sparse_vectors": {"s": {}}}, NotSupported, "sparse_vectors"),
        ({"sharding_method": "custom"}, NotSupported, "sharding_method"),
        ({"init_from": {"collection": "c"}}, NotSupported, "init_from"),
        ({"shard_number": 0}, Unprocessable, "shard_number"),
        ({"replication_factor": 0}, Unprocessable, "replication_factor"),
        ({"shard_number": 100_000}, BadRequest, "shard_number"),
        ({"hnsw_config": {"m": 100_000}}, BadRequest, "hnsw_config.m"),
        ({"wal_config": {"wal_capacity_mb": 0}}, Unprocessable, "wal_capacity_mb"),
        ({"optimizers_config": {"deleted_threshold": 1.5}}, Unprocessable, "deleted_threshold"),
        ({"optimizers_config": {"vacuum_min_vector_number": 99}}, Unprocessable, "vacuum_min_vector_number"),
        ({"quantization_config": {}}, BadRequest, "scalar, product, binary, turbo"),
        ({"quantization_config": {"scalar": {"type": "int4"}}}, BadRequest, "scalar.type"),
        ({"quantization_config": {"scalar": {"type": "int8", "quantile": 0.4}}}, Unprocessable, "quantile"),
        ({"strict_mode_config": {"max_query_limit": 0}}, Unprocessable, "max_query_limit"),
        ({"vectors": {"size": 3, "distance": "Dot"}, "hnsw_config": {"graph_dtype": "i8"}}, BadRequest, "i8"),
    ],
)
def test_a_wrong_creation_is_refused(body: dict[str, Any], error: type[ShoalError], says: str) -> None:
    with pytest.raises(error) as caught:
        create(**body)
    assert says in str(caught.value)


def test_a_patch_merges_field_by_field() -> None:
    before = create(
        vectors={"a": {**UNNAMED, "hnsw_config": {"m": 8}}, "b": UNNAMED},
        hnsw_config={"m": 12},
        optimizers_config={"indexing_threshold": 5},
        quantization_config={"scalar": {"type": "int8"}},
        strict_mode_config={"enabled": True, "max_query_limit": 4},
        metadata={"a": 1, "b": 2},
    )
    after = update(
        before,
        vectors={"a": {"hnsw_config": {"ef_construct": 99}, "on_disk": True}},
        hnsw_config={"ef_construct": 200},
        optimizers_config={"flush_interval_sec": 1},
        quantization_config="Disabled",
        params={"replication_factor": 3, "read_fan_out_factor": 2},
        strict_mode_config={"max_timeout": 9},
        metadata={"a": None, "c": 3},
    )
    hnsw = after.vectors["a"].hnsw_config
    assert hnsw is not None
    assert (hnsw.m, hnsw.ef_construct, after.vectors["a"].on_disk) == (8, 99, True)
    assert after.vectors["b"] == before.vectors["b"]
    assert (after.hnsw_config.m, after.hnsw_config.ef_construct) == (12, 200)
    assert after.optimizers_config.indexing_threshold == 5
    assert after.quantization_config is None
    assert (after.replication_factor, after.read_fan_out_factor) == (3, 2)
    strict = after.strict_mode_config
    assert strict is not None
    assert (strict.enabled, strict.max_query_limit, strict.max_timeout) == (True, 4, 9)
    assert after.metadata == {"b": 2, "c": 3}


def test_an_empty_patch_changes_nothing() -> None:
    config = create(vectors=UNNAMED, metadata={"a": 1})
    assert update(config) == config


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"vectors": {"x": {"on_disk": True}}}, BadRequest),
        ({"params": {"replication_factor": 0}}, Unprocessable),
        ({"sparse_vectors": {"s": {}}}, NotSupported),
        ({"quantization_config": "disabled"}, BadRequest),
        ({"hnsw_config": {"ef_construct": 1}}, Unprocessable),
    ],
)
def test_a_wrong_patch_is_refused(body: dict[str, Any], error: type[ShoalError]) -> None:
    with pytest.raises(error):
        update(create(vectors=UNNAMED), **body)


def test_a_configuration_survives_being_stored() -> None:
    config = create(
        vectors={"a": UNNAMED}, metadata={"a": 1}, quantization_config={"turbo": {"bits": "bits2"}}
    )
    assert msgspec.json.decode(msgspec.json.encode(config), type=CollectionParams) == config
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=CollectionParams) == config


@pytest.mark.parametrize(
    ("distance", "given", "dtype"),
    [("Cosine", None, "i8"), ("Dot", None, "bf16"), ("Euclid", "f32", "f32"), ("Cosine", "f16", "f16")],
)
def test_graphs_of_cosine_are_i8_unless_the_collection_says_otherwise(
    distance: str, given: str | None, dtype: str
) -> None:
    vectors = {"a": {"size": 3, "distance": distance, "hnsw_config": {"m": 7}}}
    config = create(vectors=vectors, hnsw_config={"graph_dtype": given, "ef_construct": 77})
    expected = GraphParams(m=7, ef_construct=77, dtype=dtype)  # type: ignore[arg-type]
    assert graph_params(config, "a") == expected


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0", "a\n", "a:b", "a?", "x" * 256, "<x>"])
def test_a_name_that_could_leave_its_place_is_refused(name: str) -> None:
    with pytest.raises(Unprocessable):
        check_name("collection", name)


@pytest.mark.parametrize("name", ["docs", "my docs", "Größe", "a.b", "x" * 255])
def test_other_names_are_fine(name: str) -> None:
    assert check_name("collection", name) == name


def test_alias_actions_are_read_in_order() -> None:
    body = b"""{"actions": [{"create_alias": {"collection_name": "c", "alias_name": "a"}},
                            {"rename_alias": {"old_alias_name": "a", "new_alias_name": "b"}},
                            {"delete_alias": {"alias_name": "b"}}]}"""
    assert collections.parse_aliases(decode(collections.ChangeAliases, body)) == (
        collections.CreateAlias("a", "c"),
        collections.RenameAlias("a", "b"),
        collections.DeleteAlias("b"),
    )


@pytest.mark.parametrize(
    "action",
    [
        {},
        {"create_alias": {"collection_name": "c", "alias_name": "a/b"}},
        {"delete_alias": {}, "create_alias": None},
    ],
)
def test_a_wrong_alias_action_is_refused(action: dict[str, Any]) -> None:
    with pytest.raises((BadRequest, Unprocessable)):
        collections.parse_aliases(
            decode(collections.ChangeAliases, json.dumps({"actions": [action]}).encode())
        )


# -- indexes, vectors, cluster ------------------------------------------------------------------------------


def index(**body: Any) -> indexes.FieldIndex:
    return indexes.parse_index(decode(indexes.CreateIndex, json.dumps(body).encode()))


@pytest.mark.parametrize("kind", indexes.INDEX_TYPES)
def test_an_index_is_given_by_name_or_with_its_options_which_are_echoed(kind: str) -> None:
    assert index(field_name='"a".b', field_schema=kind) == indexes.FieldIndex("a.b", kind)  # type: ignore[arg-type]
    options = {"type": kind, "on_disk": True}
    assert index(field_name="a", field_schema=options).params == options


def test_a_text_index_says_how_text_is_cut() -> None:
    options = {
        "type": "text",
        "tokenizer": "prefix",
        "min_token_len": 2,
        "max_token_len": 5,
        "lowercase": False,
        "stopwords": {"custom": ["The"], "languages": ["english"]},
        "stemmer": {"type": "snowball", "language": "english"},
    }
    found = index(field_name="a", field_schema=options)
    assert found.params == options
    expected = TextOptions("prefix", 2, 5, lowercase=False, stopwords=frozenset({"The"}))
    assert indexes.text_options(found.params) == expected
    assert indexes.text_options(None) == TextOptions()


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ({"field_name": "a"}, BadRequest, "field_schema"),
        ({"field_name": "a", "field_schema": "string"}, BadRequest, "'string'"),
        ({"field_name": "a", "field_schema": {}}, BadRequest, "field_schema.type"),
        ({"field_name": "a..b", "field_schema": "keyword"}, BadRequest, "a..b"),
        ({"field_name": "a", "field_schema": {"type": "text", "tokenizer": "x"}}, BadRequest, "tokenizer"),
        (
            {"field_name": "a", "field_schema": {"type": "text", "min_token_len": 3, "max_token_len": 2}},
            Unprocessable,
            "min_token_len 3",
        ),
    ],
)
def test_a_wrong_index_is_refused(body: dict[str, Any], error: type[ShoalError], says: str) -> None:
    with pytest.raises(error) as caught:
        index(**body)
    assert says in str(caught.value)


def test_a_named_vector_is_dense() -> None:
    def vector(name: str, body: bytes) -> object:
        return indexes.parse_vector(name, decode(indexes.CreateVector, body))

    dense = b'{"dense": {"size": 3, "distance": "Dot"}}'
    assert getattr(vector("v", dense), "distance", None) is Distance.DOT
    for name, body, error in (
        ("v", b'{"sparse": {}}', NotSupported),
        ("v", b"{}", BadRequest),
        ("", dense, Unprocessable),
        ("v", b'{"dense": {"size": 0, "distance": "Dot"}}', Unprocessable),
    ):
        with pytest.raises(error):
            vector(name, body)


def test_shard_operations_are_read_and_custom_sharding_refused() -> None:
    def change(body: bytes) -> object:
        return cluster.parse_cluster_operation(decode(cluster.ClusterOperation, body))

    move = b'{"move_shard": {"shard_id": 1, "from_peer_id": 2, "to_peer_id": 3, "method": "snapshot"}}'
    assert change(move) == cluster.Transfer("move_shard", 1, 2, 3, "snapshot")
    assert change(b'{"drop_replica": {"shard_id": 1, "peer_id": 2}}') == cluster.DropReplica(1, 2)
    assert change(b'{"start_resharding": {"direction": "up"}}') == cluster.StartResharding("up")
    assert change(b'{"abort_resharding": {}}') == cluster.AbortResharding()
    for body, error in (
        (b'{"create_sharding_key": {"shard_key": "x"}}', NotSupported),
        (b'{"replicate_points": {}}', NotSupported),
        (b"{}", BadRequest),
        (b'{"drop_replica": {"shard_id": -1, "peer_id": 2}}', Unprocessable),
    ):
        with pytest.raises(error):
            change(body)


@pytest.mark.parametrize(
    "location",
    ["http://10.0.0.1/x", "https://x/y", "ftp://x", "", "file:///", "..", "file:///..", "s3://b/x"],
)
def test_nothing_is_fetched_from_where_a_client_says(location: str) -> None:
    with pytest.raises(NotSupported):
        cluster.parse_recover(cluster.RecoverSnapshot(location))


@pytest.mark.parametrize(
    "location", ["file:///data/snapshots/c/a.snapshot", "a.snapshot", "../../a.snapshot"]
)
def test_a_snapshot_is_named_by_the_last_part_of_its_location(location: str) -> None:
    assert cluster.parse_recover(cluster.RecoverSnapshot(location)).file == "a.snapshot"


def test_metadata_stay_small_enough_for_the_map() -> None:
    most = collections.METADATA_BYTES_MAX
    half = {"a": "x" * (most // 2)}
    config = create(vectors=UNNAMED, metadata=half)
    with pytest.raises(BadRequest, match=r"metadata: \d+ bytes"):
        update(config, metadata={"b": "x" * (most // 2)})
    with pytest.raises(BadRequest, match=r"metadata: \d+ bytes"):
        create(vectors=UNNAMED, metadata={"a": "x" * most})
    deep = json.loads("[" * 128 + "]" * 128)
    with pytest.raises(BadRequest, match="metadata: nested over 128 levels"):
        update(config, metadata={"a": deep})
    assert update(config, metadata={"a": deep[0]}).metadata == {"a": deep[0]}
    assert update(config, metadata={"a": None, "b": "x" * (most // 2)}).metadata is not None
