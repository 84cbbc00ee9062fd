"""The table of the REST API: every call, with its body and its answer, for the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.api import answers as a
from core.api import cluster, collections, indexes, points, queries, reads


@dataclass(frozen=True, slots=True)
class Call:
    """`query` names parameters of openapi.PARAMETERS; `answer` None: any object; `media`: no envelope."""

    method: str
    path: str
    tag: str
    summary: str
    body: Any = None
    answer: Any = None
    query: tuple[str, ...] = ()
    media: str | None = None
    upload: bool = False


_C = "/collections/{collection_name}"
_P = f"{_C}/points"
_WRITE = ("wait", "ordering", "timeout")
_READ = ("consistency", "allow_partial", "timeout")
_DONE, _TEXT, _FILE = bool, "text/plain", "application/octet-stream"


def _put(path: str, tag: str, summary: str, body: Any, answer: Any, query: tuple[str, ...] = _WRITE) -> Call:
    return Call("PUT", path, tag, summary, body, answer, query)


def _post(path: str, tag: str, summary: str, body: Any, answer: Any, query: tuple[str, ...] = _READ) -> Call:
    return Call("POST", path, tag, summary, body, answer, query)


COLLECTIONS = (
    Call("GET", "/collections", "collections", "List collections", None, a.CollectionsAnswer),
    Call("GET", _C, "collections", "Describe a collection", None, a.CollectionAnswer),
    _put(_C, "collections", "Create a collection", collections.CreateCollection, _DONE, ("timeout",)),
    Call(
        "PATCH", _C, "collections", "Change a collection", collections.UpdateCollection, _DONE, ("timeout",)
    ),
    Call("DELETE", _C, "collections", "Delete a collection", None, _DONE, ("timeout",)),
    Call("GET", f"{_C}/exists", "collections", "Is there such a collection?", None, a.ExistsAnswer),
    Call("GET", f"{_C}/optimizations", "collections", "What the builder does"),
    Call("GET", f"{_C}/aliases", "aliases", "Aliases of a collection", None, a.AliasesAnswer),
    Call("GET", "/aliases", "aliases", "All aliases", None, a.AliasesAnswer),
    _post(
        "/collections/aliases", "aliases", "Change aliases", collections.ChangeAliases, _DONE, ("timeout",)
    ),
    _put(f"{_C}/index", "indexes", "Index a payload field", indexes.CreateIndex, a.UpdateResult),
    Call("DELETE", f"{_C}/index/{{field_name}}", "indexes", "Drop an index", None, a.UpdateResult, _WRITE),
    _put(
        f"{_C}/vectors/{{vector_name}}",
        "collections",
        "Add a named vector",
        indexes.CreateVector,
        a.UpdateResult,
    ),
    Call(
        "DELETE",
        f"{_C}/vectors/{{vector_name}}",
        "collections",
        "Drop a named vector",
        None,
        a.UpdateResult,
        _WRITE,
    ),
)

POINTS = (
    _put(_P, "points", "Upsert points", points.Upsert, a.UpdateResult),
    _post(f"{_P}/delete", "points", "Delete points", points.Selector, a.UpdateResult, _WRITE),
    _put(f"{_P}/vectors", "points", "Update vectors", points.UpdateVectors, a.UpdateResult),
    _post(f"{_P}/vectors/delete", "points", "Delete vectors", points.DeleteVectors, a.UpdateResult, _WRITE),
    _post(f"{_P}/payload", "points", "Merge into payloads", points.SetPayload, a.UpdateResult, _WRITE),
    _put(f"{_P}/payload", "points", "Replace payloads", points.SetPayload, a.UpdateResult),
    _post(
        f"{_P}/payload/delete", "points", "Delete payload keys", points.DeletePayload, a.UpdateResult, _WRITE
    ),
    _post(f"{_P}/payload/clear", "points", "Empty payloads", points.Selector, a.UpdateResult, _WRITE),
    _post(
        f"{_P}/batch", "points", "Several writes, in order", points.UpdateBatch, list[a.UpdateResult], _WRITE
    ),
    Call("GET", f"{_P}/{{id}}", "points", "One point", None, a.Record, ("consistency",)),
    _post(_P, "points", "Points by id", reads.RetrieveBody, list[a.Record]),
    _post(f"{_P}/scroll", "points", "Page through points", reads.ScrollBody, a.ScrollAnswer),
    _post(f"{_P}/count", "points", "Count points", reads.CountBody, a.CountAnswer),
    _post(f"{_C}/facet", "points", "Count values of a field", reads.FacetBody, a.FacetAnswer),
)

SEARCH = (
    _post(f"{_P}/query", "search", "Query points", queries.QueryBody, a.QueryAnswer),
    _post(f"{_P}/query/batch", "search", "Several queries", queries.QueryBatchBody, list[a.QueryAnswer]),
    _post(f"{_P}/query/groups", "search", "Query, grouped", queries.QueryGroupsBody, a.GroupsAnswer),
    _post(f"{_P}/search", "search", "Search (older clients)", queries.SearchBody, list[a.ScoredPoint]),
    _post(
        f"{_P}/search/batch",
        "search",
        "Searches (older clients)",
        queries.SearchBatchBody,
        list[list[a.ScoredPoint]],
    ),
    _post(
        f"{_P}/search/groups", "search", "Search, grouped (older)", queries.SearchGroupsBody, a.GroupsAnswer
    ),
    _post(
        f"{_P}/recommend", "search", "Recommend (older clients)", queries.RecommendBody, list[a.ScoredPoint]
    ),
    _post(
        f"{_P}/recommend/batch",
        "search",
        "Several (older)",
        queries.RecommendBatchBody,
        list[list[a.ScoredPoint]],
    ),
    _post(
        f"{_P}/search/matrix/pairs", "search", "Distances, as pairs", reads.MatrixBody, a.MatrixPairsAnswer
    ),
    _post(f"{_P}/search/matrix/offsets", "search", "… as offsets", reads.MatrixBody, a.MatrixOffsetsAnswer),
)


def _snapshots(prefix: str, of: str) -> tuple[Call, ...]:
    one, tag, wait = f"{prefix}/snapshots/{{snapshot_name}}", "snapshots", ("wait",)
    return (
        Call("GET", f"{prefix}/snapshots", tag, f"Snapshots of {of}", None, list[a.SnapshotInfo]),
        Call("POST", f"{prefix}/snapshots", tag, f"Make a snapshot of {of}", None, a.SnapshotInfo, wait),
        Call("GET", one, tag, f"Download a snapshot of {of}", media=_FILE),
        Call("DELETE", one, tag, f"Delete a snapshot of {of}", None, _DONE, wait),
    )


def _recovery(prefix: str, of: str) -> tuple[Call, ...]:
    upload, tag = f"{prefix}/snapshots/upload", "snapshots"
    summary, query = f"Bring {of} back from a snapshot of this node", ("wait",)
    return (
        Call("PUT", f"{prefix}/snapshots/recover", tag, summary, cluster.RecoverSnapshot, _DONE, query),
        Call(
            "POST", upload, tag, f"Bring {of} back from an upload", None, _DONE,
            ("wait", "priority", "checksum"), upload=True,
        ),
    )  # fmt: skip


_SHARD = f"{_C}/shards/{{shard_id}}"
SNAPSHOTS = (
    *_snapshots(_C, "a collection"),
    *_recovery(_C, "a collection"),
    *_snapshots(_SHARD, "a shard"),
    *_recovery(_SHARD, "a shard"),
    *_snapshots("", "the node"),
)

CLUSTER = (
    Call("GET", "/cluster", "cluster", "The cluster"),
    Call("GET", "/cluster/telemetry", "cluster", "Telemetry of all nodes"),
    Call("POST", "/cluster/recover", "cluster", "Nothing to recover: always true", None, _DONE),
    Call("DELETE", "/cluster/peer/{peer_id}", "cluster", "Remove a node", None, _DONE, ("timeout", "force")),
    Call("GET", f"{_C}/cluster", "cluster", "Shards of a collection", None, a.CollectionClusterAnswer),
    _post(f"{_C}/cluster", "cluster", "Move shards", cluster.ClusterOperation, _DONE, ("timeout",)),
    Call("GET", f"{_C}/shards", "cluster", "Shard keys: none"),
)

NODE = (
    Call("GET", "/", "node", "Name and version", media="application/json", answer=a.VersionAnswer),
    *(Call("GET", path, "node", "Health", media=_TEXT) for path in ("/healthz", "/livez", "/readyz")),
    Call("GET", "/metrics", "node", "Metrics, for Prometheus", media=_TEXT),
    Call("GET", "/telemetry", "node", "What the node does"),
    Call("GET", "/openapi.json", "node", "This document", media="application/json"),
    Call("GET", "/issues", "node", "What is wrong"),
    Call("DELETE", "/issues", "node", "Forget what was wrong", None, _DONE),
    Call("GET", "/quotas", "node", "Limits of memory and disk"),
)

CALLS: tuple[Call, ...] = (*COLLECTIONS, *POINTS, *SEARCH, *SNAPSHOTS, *CLUSTER, *NODE)
