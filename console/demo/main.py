"""`shoal demo`: three nodes, this Python's own documentation in them, questions, a death, and numbers."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from console.demo.embedding import F32, Embedder, fit
from console.demo.failover import lose_a_node
from console.demo.measuring import measure
from console.demo.nodes import starting_nodes, wait_for_all
from console.demo.rest import Hit, Rest
from console.demo.texts import Text, standard_library_texts
from console.up.cluster import LocalCluster
from core.errors import ExitCode, NotFound, ShoalError

_COLLECTION = "python-docs"
_DIMENSIONS = 128
_SHARDS, _COPIES = 4, 3
_UPSERT_POINTS = 256
_GREEN_WITHIN_S = 30.0
_MEASURED_SEARCHES = 200
_KILL = "k"
_QUESTIONS = (
    ("open a web page in a browser", None),
    ("pick a random element of a list", None),
    ("wait until several tasks are done", None),
    ("parse a date and time from a string", None),
    ("quote a string for the shell", None),
    ("write a line of values", "csv"),
)


def run_demo(*, texts_max: int, keep: bool) -> int:
    """Runs the whole story; returns the exit status. However it ends, its nodes are stopped."""
    signal.signal(signal.SIGTERM, _end_in_order)
    begun_s = time.monotonic()
    with starting_nodes(keep=keep) as cluster:
        texts = _read_texts(texts_max)
        embedder, vectors = _embed(texts)
        wait_for_all(cluster)
        urls = ", ".join(cluster.url(node) for node in cluster.config.nodes)
        _say(f"Three nodes in three zones and a coordinator, ready after {_since(begun_s)}: {urls}")
        nodes = _Nodes(cluster)
        try:
            story = _Story(cluster, nodes, embedder, vectors)
            _fill(nodes, texts, vectors)
            for question, module in _QUESTIONS:
                story.ask(question, module)
            _measure(nodes.any, vectors)
            story.lose_a_node()
            _say(f"All this took {_since(begun_s)}.")
            story.converse()
        finally:
            nodes.close()
    folder = cluster.config.data_dir
    _say(
        f"The nodes are stopped. Their data stay in {folder}"
        if keep
        else "The nodes are stopped, their data are gone."
    )
    return ExitCode.OK


class _Nodes:
    """A connection to each node: any of them takes any request."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._rests = {node.id: Rest.at(node.address) for node in cluster.config.nodes}
        self._turn = 0

    @property
    def all(self) -> list[Rest]:
        return list(self._rests.values())

    @property
    def any(self) -> Rest:
        """The next one's turn."""
        self._turn += 1
        return self.all[self._turn % len(self._rests)]

    def of(self, node: str) -> Rest:
        return self._rests[node]

    def close(self) -> None:
        for rest in self.all:
            rest.close()


@dataclass(slots=True)
class _Story:
    """What can be told again: a question, and the death of a node."""

    cluster: LocalCluster
    nodes: _Nodes
    embedder: Embedder
    vectors: F32

    def ask(self, question: str, module: str | None = None) -> None:
        _ask(self.nodes.any, self.embedder, question, module)

    def lose_a_node(self) -> None:
        def ask_others(node: str) -> None:
            _ask(self.nodes.of(node), self.embedder, _QUESTIONS[0][0])
            print()

        print()
        lose_a_node(self.cluster, _COLLECTION, self.vectors[:_SHARDS].tolist(), _say, ask_others)

    def converse(self) -> None:
        """Further questions from a terminal, until an empty line, Ctrl-D or Ctrl-C."""
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return
        url = self.cluster.url(self.cluster.config.nodes[0])
        print(
            f"\nAsk on; {_KILL} kills a node once more, an empty line ends the demo. Others may ask, too: "
            f"curl {url}/collections"
        )
        while True:
            try:
                question = input("? ").strip()
                if not question:
                    return
                if question == _KILL:
                    self.lose_a_node()
                else:
                    self.ask(question)
            except (EOFError, KeyboardInterrupt):
                print()
                return


def _end_in_order(_number: int, _frame: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _read_texts(texts_max: int) -> list[Text]:
    begun_s = time.monotonic()
    texts = standard_library_texts(texts_max)
    version = sys.version.split()[0]
    if len(texts) < 100:
        raise NotFound(
            f"this Python {version} has no source of its standard library with it: nothing to search in"
        )
    _say(f"Read {len(texts):,} docstrings of Python {version}'s standard library, {_since(begun_s)}.")
    return texts


def _embed(texts: Sequence[Text]) -> tuple[Embedder, F32]:
    begun_s = time.monotonic()
    # The name twice: it says in two words what the text is about.
    full = [f"{text.name} {text.name} {text.text}" for text in texts]
    embedder = fit(full, dimensions=_DIMENSIONS)
    vectors = embedder.embed(full)
    _say(f"Embedded by TF-IDF and a truncated SVD: {embedder.dimensions} dimensions, {_since(begun_s)}.")
    return embedder, vectors


def _fill(nodes: _Nodes, texts: Sequence[Text], vectors: F32) -> None:
    collection = {
        "vectors": {"size": vectors.shape[1], "distance": "Cosine"},
        "shard_number": _SHARDS,
        "replication_factor": _COPIES,
    }
    nodes.any.call("PUT", f"/collections/{_COLLECTION}", collection)
    index = {"field_name": "module", "field_schema": "keyword"}
    nodes.any.call("PUT", f"/collections/{_COLLECTION}/index?wait=true", index)
    begun_s = time.monotonic()
    for first in range(0, len(texts), _UPSERT_POINTS):
        points = [
            {"id": i, "vector": vectors[i].tolist(), "payload": _payload(texts[i])}
            for i in range(first, min(first + _UPSERT_POINTS, len(texts)))
        ]
        nodes.any.call("PUT", f"/collections/{_COLLECTION}/points?wait=true", {"points": points})
    rate = len(texts) / (time.monotonic() - begun_s)
    _say(
        f"Stored {len(texts):,} points, {_SHARDS} shards in {_COPIES} copies, each on two disks before "
        f"it was acknowledged: {rate:,.0f} a second."
    )
    for rest in nodes.all:
        _wait_green(rest)


def _payload(text: Text) -> dict[str, str]:
    return {"name": text.name, "module": text.module, "text": text.text[:400]}


def _wait_green(rest: Rest) -> None:
    """Until the node has nothing left to build. Searches are answered all the while."""
    begun_s = time.monotonic()
    while rest.call("GET", f"/collections/{_COLLECTION}")["status"] != "green":
        if time.monotonic() - begun_s > _GREEN_WITHIN_S:
            _say("The node is still building its graph; going on.")
            return
        time.sleep(0.05)


def _ask(rest: Rest, embedder: Embedder, question: str, module: str | None = None) -> None:
    vector = embedder.embed([question])[0]
    print(f"\n  “{question}”" + (f", only in {module}" if module else ""))
    if not vector.any():
        print("      None of these words stands in the texts.")
        return
    for hit in rest.search(_COLLECTION, vector.tolist(), limit=3, module=module):
        print(f"      {hit.score:.3f}  {hit.payload['name']}: {_summary(hit)}")


def _summary(hit: Hit) -> str:
    first = hit.payload["text"].strip().split("\n\n")[0]
    return textwrap.shorten(first, 100 - min(len(hit.payload["name"]), 60), placeholder=" …")


def _measure(rest: Rest, vectors: F32) -> None:
    count = rest.call(
        "POST", f"/collections/{_COLLECTION}/points/count?consistency=majority", {"exact": True}
    )["count"]
    if count != len(vectors):
        raise ShoalError(f"the nodes count {count} points, and {len(vectors)} were acknowledged")
    # Between two neighbours in the list, so that no query is a stored vector.
    step = max(1, (len(vectors) - 1) // _MEASURED_SEARCHES)
    queries = [(vectors[i] + vectors[i + 1]).tolist() for i in range(0, len(vectors) - 1, step)]
    measured = measure(rest, _COLLECTION, queries[:_MEASURED_SEARCHES])
    print()
    _say(
        f"Measured: {count:,} points; {measured.searches} searches one by one over HTTP: "
        f"recall@10 {measured.recall_at_10:.3f} against exact search, "
        f"p50 {measured.p50_ms:.2f} ms, p99 {measured.p99_ms:.2f} ms."
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _since(begun_s: float) -> str:
    return f"{time.monotonic() - begun_s:.1f} s"
