"""A model of what an agent has acknowledged, kept by writers whose requests may be cut off at any instant.

Each writer owns its ids, so their states are known exactly. A request that got no answer leaves each of its
points in its old or its new state; such a point is left alone until the next check says which it is.
"""

from __future__ import annotations

import http.client
import random
import threading
from dataclasses import dataclass, field
from typing import Any

from tests.running.agent import RunningAgent
from tests.running.rest import Answer, Rest

DIM = 16
RADIX = 1024


@dataclass(frozen=True, slots=True)
class State:
    """One point: the version that its vector was made from, and its payload as sorted items."""

    version: int
    payload: tuple[tuple[str, Any], ...]


Possible = set[State | None]
"""All states that a point may be in; None: it is not there."""


def vector(point_id: int, version: int) -> list[float]:
    """Different for each id and version, exact in f32; the first two numbers tell the version."""
    rng = random.Random(point_id * 1_000_003 + version)
    tail = [rng.randrange(-512, 512) / 64 for _ in range(DIM - 2)]
    return [float(version // RADIX), float(version % RADIX), *tail]


def items(payload: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(payload.items()))


@dataclass
class Writer:
    """Sends random writes for its own ids, one at a time."""

    agent: RunningAgent
    path: str
    first_id: int
    ids: int
    seed: int
    points: dict[int, Possible] = field(default_factory=dict)
    acknowledged: int = 0
    unknown: int = 0
    no_room: int = 0
    refused: list[str] = field(default_factory=list)
    _version: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self.points = {i: {None} for i in range(self.first_id, self.first_id + self.ids)}

    def run(self, stop: threading.Event) -> None:
        """Until told to stop. Never raises for a broken connection: that is what is being tested."""
        rest = self.agent.rest(timeout_s=15)
        while not stop.is_set():
            chosen = [i for i in self._rng.sample(sorted(self.points), 12) if len(self.points[i]) == 1]
            if not chosen:
                return
            self._one(rest, chosen[: self._rng.randint(1, 8)])
        rest.close()

    def _one(self, rest: Rest, ids: list[int]) -> None:
        self._version += 1
        live = [i for i in ids if self.points[i] != {None}]
        kind = self._rng.choice(["upsert", "upsert", "delete", "set", "overwrite"]) if live else "upsert"
        method, path, body, after = self._request(kind, ids if kind == "upsert" else live)
        try:
            answer = rest.call(method, f"{self.path}{path}?wait=true", body)
        except (OSError, http.client.HTTPException):
            self._note(after, None)
        else:
            self._note(after, answer)

    def _note(self, after: dict[int, State | None], answer: Answer | None) -> None:
        if answer is not None and answer.status == 200:
            self.acknowledged += 1
            self.points.update({i: {state} for i, state in after.items()})
        elif answer is not None and answer.status == 507:
            self.no_room += 1  # refused: nothing has changed
        elif answer is not None and answer.status < 500:
            self.refused.append(f"{answer.status} {answer.text[:200]}")
        else:
            self.unknown += 1
            for i, state in after.items():
                self.points[i] = self.points[i] | {state}

    def _request(self, kind: str, ids: list[int]) -> tuple[str, str, Any, dict[int, State | None]]:
        """Method, path, body, and the states of the points after it."""
        version = self._version
        before = {i: next(iter(self.points[i])) for i in ids}
        if kind == "upsert":
            payload = {"version": version, "text": "x" * self._rng.randint(0, 300)}
            body = {"points": [{"id": i, "vector": vector(i, version), "payload": payload} for i in ids]}
            return "PUT", "/points", body, {i: State(version, items(payload)) for i in ids}
        if kind == "delete":
            return "POST", "/points/delete", {"points": ids}, dict.fromkeys(ids, None)
        change = {"edited": version, self._rng.choice("abc"): version}
        after: dict[int, State | None] = {}
        for i, state in before.items():
            assert state is not None, "only live points are edited"
            merged = change if kind == "overwrite" else dict(state.payload) | change
            after[i] = State(state.version, items(merged))
        method = "PUT" if kind == "overwrite" else "POST"
        return method, "/points/payload", {"payload": change, "points": ids}, after

    def check(self, found: dict[int, State]) -> list[str]:
        """What contradicts the model; what was unknown is known from here on."""
        wrong = []
        for i, possible in self.points.items():
            state = found.get(i)
            if state not in possible:
                wrong.append(f"{i}: {state}, not one of {possible}")
            self.points[i] = {state}
        return wrong


def stored(rest: Rest, path: str) -> tuple[dict[int, State], list[str]]:
    """All points by id, and those whose vector was never written like that."""
    found: dict[int, State] = {}
    wrong: list[str] = []
    offset: int | None = 0
    while offset is not None:
        body = {"limit": 2000, "offset": offset, "with_payload": True, "with_vector": True}
        page = rest.post(f"{path}/points/scroll", body).result
        for point in page["points"]:
            state = _state(point)
            if state is None:
                wrong.append(f"{point['id']} has a vector that nobody wrote: {point}")
            else:
                found[point["id"]] = state
        offset = page["next_page_offset"]
    return found, wrong


def _state(point: dict[str, Any]) -> State | None:
    """The version stands in the vector; the rest of the vector must be that version's."""
    version = int(point["vector"][0]) * RADIX + int(point["vector"][1])
    if point["vector"] != vector(point["id"], version):
        return None
    return State(version, items(point["payload"]))
