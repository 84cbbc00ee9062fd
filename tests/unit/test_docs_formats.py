"""What the page on formats promises: a folder of another one is refused, and untouched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.store.files import Files
from agent.store.node_identity import FORMAT, NODE_JSON, NodeIdentity, read_identity, write_identity
from core.errors import StartRefused
from tests.running.agent import RunningAgent
from tests.running.pages import DOCS

PAGE = (DOCS / "upgrade-and-disk-format.md").read_text()


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1, FORMAT + 1000])
def test_a_folder_of_another_format_is_refused_and_left_alone(tmp_path: Path, other: int) -> None:
    identity = NodeIdentity(node="n1", cluster="c", voters=("n1",), begun=True)
    write_identity(tmp_path, replace(identity, format=other), Files())
    before = (tmp_path / NODE_JSON).read_bytes()
    with pytest.raises(StartRefused, match=rf"format {other}, this version of Shoal reads {FORMAT}"):
        read_identity(tmp_path, "n1")
    assert (tmp_path / NODE_JSON).read_bytes() == before


def test_the_page_names_all_that_is_in_a_data_folder(shared_agent: RunningAgent) -> None:
    rest = shared_agent.rest()
    rest.put("/collections/formats-of-docs", {"vectors": {"size": 2, "distance": "Dot"}})
    told = set(re.findall(r"[\w.]+", PAGE))
    shards = [path.name for path in (shared_agent.data_dir / "shards").glob("*/*")]
    there = {path.name for path in shared_agent.data_dir.iterdir()} | set(shards)
    rest.delete("/collections/formats-of-docs")
    assert {"node.json", "acceptor", "points.db", "manifest.json"} <= there
    assert {name for name in there if not name.endswith((".new", "-wal", "-shm"))} <= told
