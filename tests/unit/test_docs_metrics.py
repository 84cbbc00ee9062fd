"""docs/metrics.md names every metric that a node has, and no other; so do its alert rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.running.agent import ROOT, RunningAgent
from tests.running.pages import DOCS, blocks_of

PAGE = (DOCS / "metrics.md").read_text()
_NAME = re.compile(r"\bshoal_[a-z_]+")
_PARTS = re.compile(r"_(bucket|sum|count)$")


def _told() -> set[str]:
    """The names in the tables."""
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("| `shoal_"))
    return set(_NAME.findall(rows))


def _in_source() -> set[str]:
    """Names that the agent may show, also those that need an accident to appear."""
    found: set[str] = set()
    for path in (ROOT / "agent").rglob("*.py"):
        text = path.read_text()
        found |= {_PARTS.sub("", name) for name in re.findall(r'"(shoal_[a-z_]+)"', text)}
        if 'f"shoal_shard_{name}"' in text:
            found |= {f"shoal_shard_{name}" for name in re.findall(r'^ +\("([a-z_]+)", ', text, re.MULTILINE)}
    return found


@pytest.fixture(scope="module")
def live(shared_agent: RunningAgent) -> Iterator[str]:
    """What a node says after some use."""
    rest = shared_agent.rest()
    one = "/collections/metrics-of-docs"
    rest.put(one, {"vectors": {"size": 2, "distance": "Dot"}})
    rest.put(f"{one}/points", {"points": [{"id": 1, "vector": [1, 2], "payload": {"a": 1}}]}, wait=True)
    rest.post(
        f"{one}/points/query", {"query": [1, 2], "filter": {"must": {"key": "a", "match": {"value": 1}}}}
    )
    rest.post(f"{one}/points/query", {"query": [1]})
    yield rest.get("/metrics").text
    rest.delete(one)


def test_every_metric_of_a_live_node_is_in_the_page(live: str) -> None:
    shown = {_PARTS.sub("", name) for name in re.findall(r"^(shoal_[a-z_]+)", live, re.MULTILINE)}
    assert {"shoal_search_seconds", "shoal_shard_damaged", "shoal_filter_scans_total"} <= shown
    assert shown - _told() == set()


def test_what_only_grows_says_so(live: str) -> None:
    """Prometheus' rate() and our users' habits ask for it."""
    kinds = dict(re.findall(r"^# TYPE (shoal_[a-z_]+) ([a-z]+)$", live, re.MULTILINE))
    assert {name for name, kind in kinds.items() if kind == "counter"} == {
        name for name in kinds if name.endswith("_total")
    }
    assert {"shoal_log_entries_total", "shoal_checkpoints_total"} <= set(kinds)


def test_every_label_of_a_live_node_is_in_the_page(live: str) -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `shoal_")]
    told = {name: set(re.findall(r"\w+", row[2])) for row in rows for name in _NAME.findall(row[1])}
    for name, inner in re.findall(r"^(shoal_[a-z_]+)\{(.*)\} ", live, re.MULTILINE):
        assert set(re.findall(r'(\w+)="', inner)) - {"le"} == told[_PARTS.sub("", name)], name


def test_the_page_and_the_source_name_the_same_metrics() -> None:
    assert _told() == _in_source()


def test_rules_ask_for_metrics_that_there_are() -> None:
    rules = "\n".join(block.text for block in blocks_of(PAGE) if block.language == "yaml")
    asked = {_PARTS.sub("", name) for name in _NAME.findall(rules)}
    assert len(asked) > 5
    assert asked <= _told()
