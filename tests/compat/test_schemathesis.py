"""schemathesis sends what an OpenAPI file allows and forbids: no 5xx, no hang, no dropped connection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies

from tests.conftest import AGENTS
from tests.running.agent import RunningAgent
from tests.running.rest import Rest

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "qdrant-openapi.json"
DEADLINE_S = 10.0
QUICK = 12  # examples for each operation
LONG = 30
SHARDS_MAX = 8  # more are legal, and take as long as so many logs and databases take to make


@pytest.fixture(scope="module")
def victim(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[RunningAgent]:
    """An agent of its own: the requests make and delete whatever they can."""
    with RunningAgent(tmp_path_factory.mktemp("schemathesis"), agent={"fronts": 1}) as agent:
        request.config.stash[AGENTS].append(agent)
        yield agent.start()


def _ensure(rest: Rest, name: str) -> None:
    """The collection that half of the requests are aimed at, so that they get beyond `not found`."""
    body = {"vectors": {"size": 4, "distance": "Cosine"}}
    if not rest.get(f"/collections/{name}/exists").result["exists"]:
        rest.put(f"/collections/{name}", body)
        points = [{"id": i, "vector": [1, i, 0, 0], "payload": {"n": i}} for i in range(5)]
        rest.put(f"/collections/{name}/points", {"points": points}, wait=True)


def _attack(agent: RunningAgent, document: dict[str, Any], examples: int) -> int:
    """All operations of the document; returns how many requests were sent."""
    schema = schemathesis.openapi.from_dict(document)
    rest = agent.rest()
    pids = {p.pid for p in agent.processes()}
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        _ensure(rest, "target")

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy(), aimed=strategies.booleans())
        def send(case: Any, aimed: bool) -> None:
            nonlocal sent
            if aimed and "collection_name" in case.path_parameters:
                case.path_parameters["collection_name"] = "target"
            if isinstance(case.body, dict) and isinstance(case.body.get("shard_number"), int):
                case.body["shard_number"] = min(case.body["shard_number"], SHARDS_MAX)
            sent += 1
            response = case.call(base_url=agent.url, timeout=DEADLINE_S)
            told = f"{case.as_curl_command()}\n{response.status_code} {response.text[:300]}"
            assert response.status_code < 500 or response.status_code == 507, told

        send()
        assert rest.get("/readyz").status == 200
    assert agent.is_running()
    gone = pids - {p.pid for p in agent.processes()}
    assert not gone, f"processes {gone} died"
    return sent


def _own_document(agent: RunningAgent) -> dict[str, Any]:
    answer = agent.rest().get("/openapi.json")
    assert answer.status == 200
    document: dict[str, Any] = answer.body
    return document


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(QUICK, marks=pytest.mark.timeout(180)),
        pytest.param(LONG, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_requests_from_our_own_document(victim: RunningAgent, examples: int) -> None:
    sent = _attack(victim, _own_document(victim), examples)
    print(f"{sent} requests")
    assert sent > 300


@pytest.mark.skipif(not REFERENCE.exists(), reason="the reference API is not beside this checkout")
@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(QUICK, marks=pytest.mark.timeout(180)),
        pytest.param(LONG, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_requests_from_the_reference(victim: RunningAgent, examples: int) -> None:
    sent = _attack(victim, json.loads(REFERENCE.read_text()), examples)
    print(f"{sent} requests")
    assert sent > 300


def test_our_document_has_every_path_of_the_reference_that_we_serve(victim: RunningAgent) -> None:
    """And promises none that answers 404 for want of a route."""
    document = _own_document(victim)
    rest = victim.rest()
    _ensure(rest, "target")
    for path, methods in document["paths"].items():
        filled = path.replace("{collection_name}", "target")
        for name in ("id", "shard_id", "peer_id"):
            filled = filled.replace(f"{{{name}}}", "1")
        filled = (
            filled.replace("{field_name}", "f").replace("{vector_name}", "v").replace("{snapshot_name}", "s")
        )
        for method in methods:
            if method in ("get", "post", "put", "patch"):
                answer = rest.call(method.upper(), filled, None if method == "get" else {})
                assert "no such path" not in answer.text, f"{method} {path}"
                assert answer.status < 500, f"{method} {path}: {answer.text[:200]}"
