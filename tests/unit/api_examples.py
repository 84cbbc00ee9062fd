"""Good request bodies of every kind, to be read, spoilt, and sent."""

from __future__ import annotations

from typing import Any

GOOD: dict[str, list[Any]] = {
    "create": [
        {"vectors": {"size": 3, "distance": "Dot"}, "shard_number": 2, "hnsw_config": {"m": 8}},
        {
            "vectors": {"a": {"size": 3, "distance": "Cosine", "on_disk": True}},
            "metadata": {"x": 1},
            "quantization_config": {"scalar": {"type": "int8", "quantile": 0.9}},
        },
        {
            "strict_mode_config": {"enabled": True, "max_query_limit": 5},
            "optimizers_config": {"deleted_threshold": 0.5},
        },
    ],
    "update": [
        {
            "vectors": {"": {"hnsw_config": {"m": 4}, "quantization_config": "Disabled"}},
            "metadata": {"a": None},
        },
        {"params": {"replication_factor": 2}, "optimizers_config": {"max_optimization_threads": "auto"}},
    ],
    "aliases": [
        {
            "actions": [
                {"create_alias": {"collection_name": "c", "alias_name": "a"}},
                {"rename_alias": {"old_alias_name": "a", "new_alias_name": "b"}},
            ]
        }
    ],
    "index": [
        {"field_name": "a.b", "field_schema": {"type": "text", "tokenizer": "word", "max_token_len": 9}},
        {"field_name": "a", "field_schema": "keyword"},
    ],
    "vector": [{"dense": {"size": 3, "distance": "Dot"}}],
    "cluster": [{"move_shard": {"shard_id": 0, "from_peer_id": 1, "to_peer_id": 2, "method": "snapshot"}}],
    "recover": [{"location": "file:///snapshots/a.snapshot", "priority": "snapshot"}],
    "batch": [
        {
            "operations": [
                {"upsert": {"points": [{"id": 1, "vector": [1, 2, 3], "payload": {"a": [1, {"b": None}]}}]}},
                {"set_payload": {"payload": {"a": 1}, "points": [1], "key": "b"}},
                {"delete_vectors": {"vector": [""], "filter": {"must": {"has_id": [1]}}}},
                {"delete_payload": {"keys": ["a.b"], "points": [1]}},
                {"delete": {"points": [1]}},
            ]
        }
    ],
    "query": [
        {
            "query": [1, 2, 3],
            "limit": 3,
            "filter": {"must": {"key": "a", "match": {"value": 1}}},
            "with_payload": True,
        },
        {
            "query": {"fusion": "rrf"},
            "prefetch": [{"query": 1, "limit": 5}, {"query": [1, 2, 3], "filter": {}}],
        },
        {"query": {"recommend": {"positive": [1, [1, 2, 3]], "negative": [2], "strategy": "best_score"}}},
        {
            "query": {
                "formula": {
                    "sum": [
                        "$score",
                        {"mult": [2, {"key": "a", "match": {"value": 1}}]},
                        {"exp_decay": {"x": "a.b", "scale": 2, "target": {"datetime": "2024-01-01"}}},
                        {"div": {"left": 1, "right": {"abs": "n"}, "by_zero_default": 0}},
                    ]
                },
                "defaults": {"n": 1},
            },
            "prefetch": {"query": 1},
        },
        {
            "query": {
                "relevance_feedback": {
                    "target": 1,
                    "feedback": [{"example": 2, "score": 0.5}],
                    "strategy": {"naive": {"a": 1, "b": 1, "c": 1}},
                }
            }
        },
        {"query": {"order_by": {"key": "a", "direction": "desc", "start_from": "2024-01-01"}}},
        {
            "query": {"nearest": 1, "mmr": {"diversity": 0.3, "candidates_limit": 9}},
            "params": {"hnsw_ef": 64},
        },
    ],
    "groups": [
        {"query": [1, 2, 3], "group_by": "a", "with_lookup": {"collection": "c", "with_payload": ["a"]}}
    ],
    "scroll": [
        {"limit": 2, "offset": 1, "with_payload": {"exclude": ["a"]}},
        {"order_by": "a", "with_vector": [""]},
    ],
    "facet": [{"key": "a", "limit": 3, "exact": True}],
    "matrix": [{"sample": 5, "limit": 2}],
    "retrieve": [{"ids": [1, "00000000-0000-0000-0000-00000000000c"], "with_vector": True}],
}
