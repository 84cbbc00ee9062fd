"""A collection of a running agent beside a model of it: both are edited alike and asked the same filters.

What matches is decided by the naive evaluator of tests/unit. Payload edits are those of core/payload.py,
which has tests of its own; here they only say what the agent must hold.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from core.payload import delete_keys, parse_path, set_payload
from tests.compat.awkward import Id, Json, in_order, spelled, stirred_filter, stirred_payload, uuid_of
from tests.running.rest import Rest
from tests.unit.naive_filters import (
    ALL_PATHS,
    PATHS,
    Point,
    TextIndexes,
    holds,
    random_filter,
)

SIZES = {"": 5, "image": 3}
DISTANCES = ("Cosine", "Dot", "Euclid", "Manhattan")
TYPES = ("keyword", "integer", "float", "bool", "datetime", "uuid", "geo", "text")
OWN_TYPES = {path: kind for kind, paths in PATHS.items() for path in paths}
ID_NUMBERS = (0, 1, 2, 3, 1 << 32, (1 << 63) - 1, (1 << 64) - 1, *range(10, 60))
ID_UUIDS = tuple(str(uuid.UUID(int=(n * 0x9E3779B97F4A7C15F39CC0605CEDC834) % (1 << 128))) for n in range(40))
SET_AT = ("o", "o.deep", "l[]", "l[0]", "l[1]", "new.o", "tags", "l[].deep")
TOKENIZERS = ("word", "whitespace", "prefix", "multilingual")


@dataclass
class Held:
    """What the model knows of a point."""

    payload: dict[str, Json]
    vectors: dict[str, list[float]]


@dataclass
class Twin:
    """One collection, here and there. `clients` are asked in turn: connections land on different fronts."""

    clients: list[Rest]
    name: str
    rng: random.Random
    shards: int = 1
    distances: dict[str, str] = field(default_factory=dict)
    points: dict[Id, Held] = field(default_factory=dict)
    texts: TextIndexes = field(default_factory=dict)
    indexed: dict[str, str] = field(default_factory=dict)
    pairs: int = 0
    matched: int = 0
    _kept: list[Json] = field(default_factory=list)
    _asked: int = 0

    # -- the agent -----------------------------------------------------------------------------------------

    @property
    def client(self) -> Rest:
        self._asked += 1
        return self.clients[self._asked % len(self.clients)]

    def reconnect(self) -> None:
        for client in self.clients:
            client.close()  # the next call opens it again

    @property
    def _path(self) -> str:
        return f"/collections/{self.name}"

    def create(self, distances: Sequence[str] = DISTANCES) -> None:
        self.distances = {name: self.rng.choice(distances) for name in SIZES}
        vectors = {name: {"size": size, "distance": self.distances[name]} for name, size in SIZES.items()}
        assert self.client.put(self._path, {"vectors": vectors, "shard_number": self.shards}).result

    def write(self, method: str, path: str, body: Json, *, status: int = 200) -> None:
        answer = self.client.call(method, f"{self._path}/points{path}", body, wait=True)
        assert answer.status == status, f"{method} {path} {json.dumps(body)}: {answer.text[:500]}"

    def index(self, path: str, kind: str, **options: Json) -> None:
        body = {"field_name": path, "field_schema": {"type": kind, **options} if options else kind}
        assert self.client.put(f"{self._path}/index", body, wait=True).result
        self.indexed[path] = kind
        self.texts.pop(path, None)
        if kind == "text":
            self.texts[path] = options

    def index_text(self, path: str) -> None:
        rng = self.rng
        options: dict[str, Json] = {"tokenizer": rng.choice(TOKENIZERS)}
        if rng.random() < 0.5:
            options["lowercase"] = rng.random() < 0.5
        if rng.random() < 0.3:
            options["min_token_len"] = rng.randrange(1, 4)
        if rng.random() < 0.3:
            options["max_token_len"] = rng.randrange(3, 6)
        if rng.random() < 0.3:
            options["ascii_folding"] = True
        if rng.random() < 0.3:
            options["stopwords"] = {"custom": ["The", "sea", "a"]}
        self.index(path, "text", **options)

    def index_all(self, types: Callable[[str], str]) -> None:
        for path in ALL_PATHS:
            kind = types(path)
            if kind == "text":
                self.index_text(path)
            else:
                self.index(path, kind)

    def drop_index(self, path: str) -> None:
        assert self.client.delete(f"{self._path}/index/{path}", wait=True).result
        self.indexed.pop(path, None)
        self.texts.pop(path, None)

    def drop_indexes(self) -> None:
        for path in list(self.indexed):
            self.drop_index(path)

    # -- edits of both -------------------------------------------------------------------------------------

    def fill(self, count: int) -> None:
        self.upsert([self._random_point() for _ in range(count)])

    def upsert(self, points: list[Json]) -> None:
        self.write("PUT", "", {"points": points})
        self._apply("upsert", {"points": points})

    def delete(self, ids: list[Id]) -> None:
        self.write("POST", "/delete", {"points": ids})
        self._apply("delete", {"points": ids})

    def edit(self, times: int) -> None:
        """Random edits of every kind, some together in a batch."""
        for _ in range(times):
            edits = []
            for _ in range(self.rng.randrange(2, 5) if self.rng.random() < 0.2 else 1):
                edits.append(self._random_edit())
                self._apply(*edits[-1])
            if len(edits) > 1:
                self.write("POST", "/batch", {"operations": [{kind: body} for kind, body in edits]})
            else:
                [(kind, body)] = edits
                self.write(*_CALLS[kind], body)
            if len(self.points) < 30:
                self.fill(30)

    def _random_point(self) -> Json:
        rng = self.rng
        id_: Id = rng.choice(ID_NUMBERS) if rng.random() < 0.6 else spelled(rng, rng.choice(ID_UUIDS))
        vectors = {name: self.random_vector(name) for name in SIZES if rng.random() < 0.75}
        return {"id": id_, "vector": vectors, "payload": stirred_payload(rng)}

    def random_vector(self, name: str) -> list[float]:
        return [round(self.rng.uniform(-1, 1), 3) + 0.01 for _ in range(SIZES[name])]

    def _some_ids(self, count: int = 5) -> list[Id]:
        there = list(self.points)
        return self.rng.sample(there, min(len(there), self.rng.randrange(1, count + 1)))

    def _chosen(self, *, rarely: bool = False) -> Json:
        """Ids, or a filter; one that deletes should not match too much."""
        rng = self.rng
        if rng.random() < 0.6:
            return {"points": [spelled(rng, one) for one in self._some_ids()]}
        tries = [self.random_filter() for _ in range(8 if rarely else 1)]
        return {"filter": min(tries, key=lambda f: len(self.matching(f))) if rarely else tries[0]}

    def _random_edit(self) -> tuple[str, Json]:
        rng = self.rng
        kind = rng.choice((
            "upsert", "upsert", "delete", "set_payload", "set_payload", "set_payload", "overwrite_payload",
            "overwrite_payload", "delete_payload", "delete_payload", "clear_payload", "update_vectors",
            "delete_vectors",
        ))  # fmt: skip
        match kind:
            case "upsert":
                body: Json = {"points": [self._random_point() for _ in range(rng.randrange(1, 8))]}
                body["points"] = list({str(uuid_of(p["id"])): p for p in body["points"]}.values())
                if rng.random() < 0.3:
                    body["update_mode"] = rng.choice(("upsert", "insert_only", "update_only"))
                if rng.random() < 0.3:
                    body["update_filter"] = self.random_filter()
            case "delete" | "clear_payload":
                body = self._chosen(rarely=True)
            case "set_payload":
                body = {"payload": _some_of(rng, stirred_payload(rng)), **self._chosen()}
                if rng.random() < 0.4:
                    body["key"] = rng.choice(SET_AT)
            case "overwrite_payload":
                body = {"payload": stirred_payload(rng), **self._chosen(rarely=True)}
            case "delete_payload":
                body = {"keys": rng.sample(ALL_PATHS, rng.randrange(1, 4)), **self._chosen()}
            case "update_vectors":
                ids = self._some_ids()
                vectors = [{name: self.random_vector(name) for name in _some_names(rng)} for _ in ids]
                pairs = zip(ids, vectors, strict=True)
                body = {"points": [{"id": spelled(rng, i), "vector": v} for i, v in pairs]}
            case _:
                body = {"vector": _some_names(rng), **self._chosen()}
        return kind, body

    def _apply(self, kind: str, body: Json) -> None:
        """The same edit in the model."""
        if kind == "upsert":
            self._apply_upsert(body)
            return
        if kind == "update_vectors":
            for one in body["points"]:
                self.points[uuid_of(one["id"])].vectors.update(one["vector"])
            return
        ids = self.matching(body["filter"]) if "filter" in body else {uuid_of(one) for one in body["points"]}
        for id_ in ids & self.points.keys():
            held = self.points[id_]
            match kind:
                case "delete":
                    del self.points[id_]
                case "set_payload":
                    key = parse_path(body["key"]) if "key" in body else None
                    held.payload = set_payload(held.payload, body["payload"], key)
                case "overwrite_payload":
                    held.payload = body["payload"]
                case "delete_payload":
                    held.payload = delete_keys(held.payload, [parse_path(path) for path in body["keys"]])
                case "clear_payload":
                    held.payload = {}
                case _:
                    held.vectors = {n: v for n, v in held.vectors.items() if n not in body["vector"]}

    def _apply_upsert(self, body: Json) -> None:
        mode = body.get("update_mode", "upsert")
        where = body.get("update_filter")
        let_through = self.points.keys() if where is None else self.matching(where)
        before = set(self.points)
        for point in body["points"]:
            id_ = uuid_of(point["id"])
            if (id_ in let_through and mode != "insert_only") if id_ in before else mode != "update_only":
                self.points[id_] = Held(point["payload"], dict(point["vector"]))

    # -- what must be answered -----------------------------------------------------------------------------

    def random_filter(self) -> Json:
        return stirred_filter(self.rng, random_filter(self.rng), list(self.points))

    def matching(self, filter_: Json) -> set[Id]:
        return {id_ for id_, held in self.points.items() if self.holds(filter_, id_, held)}

    def holds(self, filter_: Json, id_: Id, held: Held) -> bool:
        return holds(filter_, Point(id_, held.payload, frozenset(held.vectors)), self.texts)

    def check_contents(self) -> None:
        """The agent holds the model's points: payloads, and which vectors they have."""
        found = self._scroll({"limit": 10_000, "with_payload": True, "with_vector": True})
        assert [p["id"] for p in found] == in_order(self.points)
        for point in found:
            held = self.points[point["id"]]
            assert _same(point["payload"], held.payload), f"{point} instead of {held}"
            vectors = point["vector"] if isinstance(point["vector"], dict) else {"": point["vector"]}
            assert vectors.keys() == held.vectors.keys(), f"{point} instead of {held}"

    def check_filters(self, count: int) -> None:
        """Random filters, new ones and such as were asked before the last edits."""
        for number in range(count):
            if self._kept and self.rng.random() < 0.25:
                filter_ = self.rng.choice(self._kept)
            else:
                filter_ = self.random_filter()
                self._kept = [filter_, *self._kept[:20]]
            self.check(filter_, f"{self.name}, filter {number}")

    def check(self, filter_: Json, where: str = "") -> None:
        expected = self.matching(filter_)
        self.pairs += len(self.points)
        self.matched += len(expected)
        counted = self._post("count", {"filter": filter_, "exact": True})["count"]
        luck = self.rng.random()
        if luck < 0.4 or counted != len(expected):
            limit = self.rng.choice((1, 7, 10_000, 10_000)) if counted == len(expected) < 20 else 10_000
            body = {"filter": filter_, "limit": limit, "with_payload": False}
            found = [point["id"] for point in self._scroll(body)]
            assert found == in_order(expected), self._difference(filter_, set(found), expected, where)
        elif luck < 0.8:
            self._check_search(filter_, expected, where)
        assert counted == len(expected), f"{where}: counted {counted}: {json.dumps(filter_)}"

    def _post(self, call: str, body: Json) -> Json:
        return self.client.post(f"{self._path}/points/{call}", body).result

    def _scroll(self, body: Json) -> list[Json]:
        found: list[Json] = []
        offset: Id | None = None
        while True:
            given = body if offset is None else {**body, "offset": offset}
            page = self._post("scroll", given)
            found += page["points"]
            offset = page["next_page_offset"]
            if offset is None:
                return found
            assert len(page["points"]) == body["limit"]

    def _check_search(self, filter_: Json, expected: set[Id], where: str) -> None:
        """So few points are compared one by one, exact or not: the best that match, and no others."""
        name = self.rng.choice(tuple(SIZES))
        query, limit = self.random_vector(name), self.rng.choice((1, 3, 10, 1_000))
        body = {"query": query, "using": name, "filter": filter_, "limit": limit, "with_payload": False}
        if self.rng.random() < 0.5:
            body["params"] = {"exact": True}
        hits = self._post("query", body)["points"]
        vectors = {i: self.points[i].vectors[name] for i in expected if name in self.points[i].vectors}
        scores = {i: score(self.distances[name], v, query) for i, v in vectors.items()}
        strange = {hit["id"] for hit in hits} - scores.keys()
        assert not strange, self._difference(filter_, {hit["id"] for hit in hits}, scores.keys(), where)
        best = sorted(scores.values(), reverse=self.distances[name] in ("Cosine", "Dot"))[:limit]
        told = f"{where}: {json.dumps(body)}"
        assert len({hit["id"] for hit in hits}) == len(best), told
        assert np.allclose([hit["score"] for hit in hits], best, atol=1e-4), told
        assert np.allclose([scores[hit["id"]] for hit in hits], best, atol=1e-4), told

    def _difference(self, filter_: Json, found: Iterable[Id], expected: Iterable[Id], where: str) -> str:
        wrong = sorted(set(found) ^ set(expected), key=str)
        one = wrong[0] if wrong else None
        held = self.points.get(one) if one is not None else None
        return (
            f"{where}: {json.dumps(filter_)}: {'found' if one in set(found) else 'missing'}: {one}, {held}, "
            f"and {len(wrong) - 1} more; indexes {self.indexed}, texts {self.texts}"
        )


_CALLS = {
    "upsert": ("PUT", ""),
    "delete": ("POST", "/delete"),
    "set_payload": ("POST", "/payload"),
    "overwrite_payload": ("PUT", "/payload"),
    "delete_payload": ("POST", "/payload/delete"),
    "clear_payload": ("POST", "/payload/clear"),
    "update_vectors": ("PUT", "/vectors"),
    "delete_vectors": ("POST", "/vectors/delete"),
}


def own_types(path: str) -> str:
    return OWN_TYPES.get(path, "keyword")


def odd_types(rng: random.Random) -> Callable[[str], str]:
    return lambda path: rng.choice([kind for kind in TYPES if kind != own_types(path)])


def score(distance: str, vector: list[float], query: list[float]) -> float:
    a, b = np.array(vector), np.array(query)
    match distance:
        case "Cosine":
            return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        case "Dot":
            return float(a @ b)
        case "Euclid":
            return float(np.linalg.norm(a - b))
        case _:
            return float(np.abs(a - b).sum())


def _some_of(rng: random.Random, payload: dict[str, Json]) -> dict[str, Json]:
    names = rng.sample(sorted(payload), min(len(payload), rng.randrange(0, 4)))
    return {name: payload[name] for name in names}


def _some_names(rng: random.Random) -> list[str]:
    return rng.choice((["image"], [""], ["", "image"]))


def _same(a: Json, b: Json) -> bool:
    """Equal, 1, 1.0 and true being three values."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
