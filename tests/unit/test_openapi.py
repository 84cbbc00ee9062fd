"""The OpenAPI document: sound, complete, and of one mind with what is really read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from core.api.calls import CALLS
from core.openapi import document
from tests.unit.api_examples import GOOD

DOCUMENT = document()
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
BODY_OF = {
    "create": "CreateCollection",
    "update": "UpdateCollection",
    "aliases": "ChangeAliases",
    "index": "CreateIndex",
    "vector": "CreateVector",
    "cluster": "ClusterOperation",
    "recover": "RecoverSnapshot",
    "batch": "UpdateBatch",
    "query": "QueryBody",
    "groups": "QueryGroupsBody",
    "scroll": "ScrollBody",
    "facet": "FacetBody",
    "matrix": "MatrixBody",
    "retrieve": "RetrieveBody",
}


def errors(body: Any, schema: str) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    whole = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    return [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(body)]


def test_it_is_plain_json_and_every_reference_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= set(SCHEMAS)


def test_each_call_is_there_once_with_its_parameters() -> None:
    assert len({(call.method, call.path) for call in CALLS}) == len(CALLS)
    for call in CALLS:
        operation = DOCUMENT["paths"][call.path][call.method.lower()]
        in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", call.path))
        assert {"200", "default"} <= set(operation["responses"])
    ids = [op["operationId"] for path in DOCUMENT["paths"].values() for op in path.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("kind", BODY_OF)
def test_the_good_examples_fit_their_schemas(kind: str) -> None:
    for body in GOOD[kind]:
        assert errors(body, BODY_OF[kind]) == []


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        ("QueryBody", {"limit": 0}),
        ("QueryBody", {"filter": {"musst": []}}),
        ("ScrollBody", {"offset": -1}),
        ("CreateCollection", {"vectors": {"size": 0, "distance": "Dot"}}),
        ("CreateCollection", {"vectors": {"size": 3, "distance": "Cos"}}),
        ("FacetBody", {"key": "a..b"}),
        ("QueryBody", {"query": {"nearest": 1, "fusion": "rrf"}}),
        ("CreateIndex", {"field_name": "a", "field_schema": "string"}),
        ("Upsert", {"points": [{"id": "x", "vector": ["y"]}]}),
        ("UpdateBatch", {"operations": [{"upsert": {"points": [{"id": 1, "vector": [1], "payload": []}]}}]}),
    ],
)
def test_what_would_be_refused_does_not_fit(schema: str, body: Any) -> None:
    assert errors(body, schema)


def test_what_is_refused_is_not_offered() -> None:
    assert "sparse_vectors" not in SCHEMAS["CreateCollection"]["properties"]
    assert "shard_key" not in SCHEMAS["QueryBody"]["properties"]
    assert "indices" not in json.dumps(SCHEMAS["QueryObject"])
    assert "create_sharding_key" not in json.dumps(SCHEMAS["ClusterOperation"])


def test_a_snapshot_may_be_of_any_size() -> None:
    assert SCHEMAS["SnapshotInfo"]["properties"]["size"] == {"type": "integer"}


def test_what_is_accepted_has_no_result_yet() -> None:
    made = DOCUMENT["paths"]["/snapshots"]["post"]["responses"]
    accepted = made["202"]["content"]["application/json"]["schema"]
    assert accepted["required"] == ["status", "time"]
    assert accepted["properties"]["status"] == {"const": "accepted"}
    assert made["200"]["content"]["application/json"]["schema"]["properties"]["status"] == {"const": "ok"}
