"""The table of routes: method and path pattern → handler, with the role that each needs declared."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import parse_qs, unquote

from agent.front.access import Role
from core.errors import BadRequest, DeadlineExceeded, NotFound, ShoalError
from core.replication.effects import Consistency


@dataclass(slots=True)
class Request:
    """A request as handlers see it: authenticated, routed, its body read."""

    method: str
    path: str
    parameters: tuple[str, ...]
    """The decoded parts of the path that stand for the pattern's `*`."""
    query: Mapping[str, str]
    body: bytes
    deadline: float
    """Loop time."""
    id: str
    key_name: str = "anonymous"
    role: Role = Role.ADMIN
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: object | None = None
    """The aiohttp request, for the few handlers that stream."""

    def left_s(self) -> float:
        """Seconds until the deadline; raises DeadlineExceeded when it has passed."""
        left = self.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded("the request's timeout has passed; give it more by ?timeout=seconds")
        return left


@dataclass(slots=True)
class Reply:
    """What a handler answers: `result` goes into the envelope, `raw` is sent as it is."""

    result: bytes = b"true"
    """Encoded JSON."""
    status: int = 200
    raw: bytes | None = None
    content_type: str = "application/json"
    headers: Mapping[str, str] | None = None
    partial: bytes | None = None
    """What the result lacks, as JSON."""
    streamed: object | None = None
    """An aiohttp response that is already under way."""


Handler = Callable[[Request], Awaitable[Reply]]
AtOnce = Callable[[Request], Reply | None]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table. `free`: no key, and never refused for load (health)."""

    method: str
    pattern: str
    needs: Role
    handler: Handler
    free: bool = False
    streams: bool = False
    """The handler reads the body itself."""
    sends_file: bool = False
    """The handler streams its answer itself."""
    at_once: AtOnce | None = None
    """Answers short requests without waiting; None, with nothing done, for those that are not."""


class MethodNotAllowed(ShoalError):
    """The path exists, not with this method."""

    code, status = "method-not-allowed", 405

    def __init__(self, text: str, allowed: str) -> None:
        super().__init__(text)
        self.allowed = allowed
        """For the header `Allow`."""


_PATHS_KEPT = 256


class Router:
    """Finds a route in a tree of path parts; a literal part goes before `*`."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.find = lru_cache(_PATHS_KEPT)(self._find)
        self._root: dict[str, object] = {}
        self.routes = tuple(routes)
        for route in self.routes:
            node = self._root
            for part in _parts(route.pattern):
                node = node.setdefault(part, {})  # type: ignore[assignment]
            methods: dict[str, Route] = node.setdefault("/", {})  # type: ignore[assignment]
            if route.method in methods:
                raise ValueError(f"two routes for {route.method} {route.pattern}")
            methods[route.method] = route

    def _find(self, method: str, raw_path: str) -> tuple[Route, tuple[str, ...]]:
        """The route and the path's parameters, percent-decoded. Raises NotFound, MethodNotAllowed.

        HEAD is GET, whose answer is sent without its body; not where that body is a file.
        """
        parts = [unquote(part) if "%" in part else part for part in _parts(raw_path)]
        methods, parameters = self._walk(self._root, parts, ())
        if methods is None:
            raise NotFound(f"no such path: {raw_path[:100]}; the API is described at /openapi.json")
        route = methods.get(method)
        heard = methods.get("GET") if method == "HEAD" else None
        if heard is not None and not heard.sends_file:
            route = heard
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise MethodNotAllowed(f"{method} is not allowed here; allowed: {allowed}", allowed)
        return route, parameters

    def _walk(
        self, node: dict[str, object], parts: list[str], parameters: tuple[str, ...]
    ) -> tuple[dict[str, Route] | None, tuple[str, ...]]:
        if not parts:
            return node.get("/"), parameters  # type: ignore[return-value]
        part, rest = parts[0], parts[1:]
        literal = node.get(part) if part not in ("/", "*") else None
        if literal is not None:
            found = self._walk(literal, rest, parameters)  # type: ignore[arg-type]
            if found[0] is not None:
                return found
        anything = node.get("*")
        if anything is None:
            return None, parameters
        return self._walk(anything, rest, (*parameters, part))  # type: ignore[arg-type]


def _parts(path: str) -> list[str]:
    return path.strip("/").split("/") if path.strip("/") else []


def parse_query(raw: str) -> dict[str, str]:
    """The query string; of a repeated key the last counts. Raises BadRequest."""
    if not raw:
        return {}
    try:
        return {k: v[-1] for k, v in parse_qs(raw, keep_blank_values=True, max_num_fields=64).items()}
    except ValueError as problem:
        raise BadRequest(f"query string: {problem}") from None


def flag(query: Mapping[str, str], name: str, default: bool = False) -> bool:
    """A boolean parameter of the query string. Raises BadRequest."""
    text = query.get(name)
    if text is None:
        return default
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise BadRequest(f"query parameter {name}: expected true or false, got {text[:40]!r}")


def check_choice(query: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> None:
    """Raises BadRequest for a parameter of the query string that is none of those allowed."""
    found = query.get(name)
    if found is not None and found not in allowed:
        raise BadRequest(f"query parameter {name}: expected {', '.join(allowed)}, got {found[:40]!r}")


def served_with(level: Consistency) -> dict[str, str]:
    """The header of an answer to who asked for a consistency."""
    return {"X-Shoal-Consistency-Served": level.value}
