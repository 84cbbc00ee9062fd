"""`shoal demo`: a node, this Python's own documentation in it, questions to it, and what was measured."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import NoReturn

from console.demo.embedding import F32, Embedder, fit
from console.demo.measuring import measure
from console.demo.node import DemoNode, running_node
from console.demo.rest import Hit, Rest
from console.demo.texts import Text, standard_library_texts
from core.errors import ExitCode, NotFound, ShoalError

_COLLECTION = "python-docs"
_DIMENSIONS = 128
_UPSERT_POINTS = 256
_GREEN_WITHIN_S = 30.0
_MEASURED_SEARCHES = 200
_QUESTIONS = (
    ("open a web page in a browser", None),
    ("pick a random element of a list", None),
    ("wait until several tasks are done", None),
    ("parse a date and time from a string", None),
    ("quote a string for the shell", None),
    ("write a line of values", "csv"),
)


def run_demo(*, texts_max: int, keep: bool) -> int:
    """Runs the whole story; returns the exit status. However it ends, the node that it started is stopped."""
    signal.signal(signal.SIGTERM, _end_in_order)
    texts = _read_texts(texts_max)
    begun_s = time.monotonic()
    # The name twice: it says in two words what the text is about.
    full = [f"{text.name} {text.name} {text.text}" for text in texts]
    embedder = fit(full, dimensions=_DIMENSIONS)
    vectors = embedder.embed(full)
    _say(f"Embedded by TF-IDF and a truncated SVD: {embedder.dimensions} dimensions, {_since(begun_s)}.")
    with running_node(keep=keep) as node:
        _say(f"Started a node at {node.url}, ready after {node.ready_after_s:.2f} s.")
        rest = Rest(node.host, node.port)
        try:
            _fill(rest, texts, vectors)
            for question, module in _QUESTIONS:
                _ask(rest, embedder, question, module)
            _measure(rest, vectors)
            _converse(rest, embedder, node)
        finally:
            rest.close()
    _say(
        f"The node is stopped. Its data stay in {node.folder}"
        if keep
        else "The node is stopped, its data are gone."
    )
    return ExitCode.OK


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


def _fill(rest: Rest, texts: Sequence[Text], vectors: F32) -> None:
    rest.call(
        "PUT", f"/collections/{_COLLECTION}", {"vectors": {"size": vectors.shape[1], "distance": "Cosine"}}
    )
    index = {"field_name": "module", "field_schema": "keyword"}
    rest.call("PUT", f"/collections/{_COLLECTION}/index?wait=true", index)
    begun_s = time.monotonic()
    for first in range(0, len(texts), _UPSERT_POINTS):
        points = [
            {"id": i, "vector": vectors[i].tolist(), "payload": _payload(texts[i])}
            for i in range(first, min(first + _UPSERT_POINTS, len(texts)))
        ]
        rest.call("PUT", f"/collections/{_COLLECTION}/points?wait=true", {"points": points})
    rate = len(texts) / (time.monotonic() - begun_s)
    _say(f"Stored {len(texts):,} points, each on disk before it was acknowledged: {rate:,.0f} a second.")
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
    count = rest.call("POST", f"/collections/{_COLLECTION}/points/count", {"exact": True})["count"]
    if count != len(vectors):
        raise ShoalError(f"the node counts {count} points, and {len(vectors)} were acknowledged")
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


def _converse(rest: Rest, embedder: Embedder, node: DemoNode) -> None:
    """Further questions from a terminal, until an empty line, Ctrl-D or Ctrl-C."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    print(
        f"\nAsk on; an empty line ends the demo. Meanwhile others may ask, too: curl {node.url}/collections"
    )
    while True:
        try:
            question = input("? ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question:
            return
        _ask(rest, embedder, question)


def _say(text: str) -> None:
    print(text, flush=True)


def _since(begun_s: float) -> str:
    return f"{time.monotonic() - begun_s:.1f} s"
