"""What every request passes: id, key, limits, routing, envelope, metrics, log; in this order."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from agent.front.access import Keys, Role, presented_key, require
from agent.front.framing import Head, Plain
from agent.front.responses import Response, Unsent, WholeResponse
from agent.front.routes import AtOnce, MethodNotAllowed, Reply, Request, Route, Router, parse_query
from agent.metrics import Counter, Metrics
from core.errors import (
    BadRequest,
    DeadlineExceeded,
    Overloaded,
    ShoalError,
    TooLarge,
    Unauthorized,
)
from core.settings import Settings
from net.logs import Log

TIMEOUT_MAX_S = 3600.0
BODY_TIMEOUT_S = 60.0
_REQUEST_ID = re.compile(r"[\w.:/-]{1,128}\Z")
_FREE_PATHS = frozenset({"/", "/healthz", "/livez", "/readyz"})
_GZIP_BYTES_MIN = 4096
_LARGE_ANSWER_BYTES = 1 << 20
_COUNTERS_MAX = 256
_ENVELOPE_END = b',"status":"ok","time":%.6f}'


@dataclass(frozen=True, slots=True)
class AppLimits:
    """What the node's cluster.toml says of its fronts; other bounds are settings of the cluster."""

    bodies_bytes_max: int = 256 << 20
    """Of all bodies in memory at once; the node's bound divided by its fronts."""
    slow_request_ms: int = 1000
    cors_origins: tuple[str, ...] = ()
    gzip: bool = False


class App:
    """One front's request handling. `handle` never raises: each error becomes an answer."""

    def __init__(
        self,
        router: Router,
        keys: Keys,
        metrics: Metrics,
        log: Log,
        limits: AppLimits,
        settings: Callable[[], Settings],
    ) -> None:
        self._router, self._keys, self._metrics, self._log = router, keys, metrics, log
        self._limits, self._settings = limits, settings
        self._bodies_bytes = 0
        self._unsent = Unsent()
        self.under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.stopping = False
        self._process, self._requests = secrets.token_hex(4), 0  # random for each request: a system call
        self._counters: dict[tuple[str, int], Counter] = {}

    async def handle(self, http: web.BaseRequest) -> Response:
        """Answer one request."""
        began = time.perf_counter()
        self.under_way += 1
        self._idle.clear()
        request_id = self._request_id(http.headers)
        try:
            response = await self._respond(http, request_id, began)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as problem:  # noqa: BLE001 - whatever it is, the client gets an answer
            response = self._failed(problem, request_id, http.raw_path, began)
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()
        self._finish(http.method, http.raw_path, http.headers, response, request_id, began)
        return response

    def at_once(self, plain: Plain) -> bytes | None:
        """Answer one request without waiting for anything; None if that is not possible: then `handle` it."""
        head = plain.head
        answer = self._route_at_once(head)
        if answer is None or self.stopping or self._limits.gzip:
            return None
        if len(plain.body) > self._settings().body_bytes_max:
            return None
        began = time.perf_counter()
        request_id = self._request_id(head.headers)
        self.under_way += 1
        try:
            _, request = self._admitted(head.method, head.target, head.headers, request_id)
            request.body = plain.body
            reply = answer(request)
            if reply is None:
                return None
            body = _enveloped(reply, began)
            if len(body) > _LARGE_ANSWER_BYTES:
                return None
            response = WholeResponse(body, status=reply.status, headers=reply.headers)
        except Exception as problem:  # noqa: BLE001 - as above
            response = self._failed(problem, request_id, head.target, began)
        finally:
            self.under_way -= 1
        self._finish(head.method, head.target, head.headers, response, request_id, began)
        return response.whole()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no request is under way; False if some still are after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _route_at_once(self, head: Head) -> AtOnce | None:
        try:
            return self._router.find(head.method, head.target.partition("?")[0])[0].at_once
        except ShoalError:  # there is none; `handle` says so, after it has looked at the key
            return None

    async def _respond(self, http: web.BaseRequest, request_id: str, began: float) -> Response:
        if http.method == "OPTIONS" and "Origin" in http.headers:
            return WholeResponse(
                b"", status=204
            )  # its CORS headers are added in _finish; it says nothing else
        route, request = self._admitted(http.method, http.raw_path, http.headers, request_id)
        request.stream = http
        reply = await self._run(http, route, request)
        return self._response(http, reply, began)

    def _admitted(
        self, method: str, target: str, headers: Mapping[str, str], request_id: str
    ) -> tuple[Route, Request]:
        """The route, and the request without its body, once the key and the load allow it."""
        raw_path, _, raw_query = target.partition("?")
        role, key_name = Role.NOBODY, "anonymous"
        if raw_path not in _FREE_PATHS:
            role, key_name = self._keys.role(
                presented_key(headers.get("api-key"), headers.get("authorization"))
            )
        route, parameters = self._router.find(method, raw_path)
        settings = self._settings()
        if not route.free:
            require(role, route.needs, f"{route.method} {route.pattern}")
            if self.under_way > settings.requests_max:
                raise Overloaded(f"{self.under_way} requests are under way; retry later")
        query = parse_query(raw_query)
        request = Request(
            method=method,
            path=raw_path,
            parameters=parameters,
            query=query,
            body=b"",
            deadline=asyncio.get_running_loop().time() + _timeout_s(query, settings.timeout_s),
            id=request_id,
            key_name=key_name,
            role=role,
            headers=headers,
        )
        return route, request

    async def _run(self, http: web.BaseRequest, route: Route, request: Request) -> Reply:
        if route.streams or not http.can_read_body:
            _invite_body(http)
            return await route.handler(request)
        size = http.content_length
        if size is None:  # chunked: as much as it may become
            size = self._settings().body_bytes_max
        if http.content_length is not None and size > self._settings().body_bytes_max:
            raise _too_large(self._settings().body_bytes_max)
        if "Content-Encoding" in http.headers and http.headers["Content-Encoding"] != "identity":
            raise BadRequest("header Content-Encoding: bodies must be sent uncompressed")
        if self._bodies_bytes and self._bodies_bytes + size > self._limits.bodies_bytes_max:
            raise Overloaded("too many bytes of requests are in memory; retry later")
        self._bodies_bytes += size
        try:
            request.body = await self._read(http)
            return await route.handler(request)
        finally:
            self._bodies_bytes -= size

    async def _read(self, http: web.BaseRequest) -> bytes:
        try:
            if http.content.is_eof():  # it came with the head, as most do
                return await http.read()
            _invite_body(http)
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await http.read()
        except web.HTTPRequestEntityTooLarge:
            raise _too_large(self._settings().body_bytes_max) from None
        except TimeoutError:
            raise DeadlineExceeded(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
        except (web.RequestPayloadError, PayloadEncodingError) as problem:
            raise BadRequest(f"the body is broken: {problem}") from None

    def _response(self, http: web.BaseRequest, reply: Reply, began: float) -> Response:
        if reply.streamed is not None:
            assert isinstance(reply.streamed, web.StreamResponse)
            return reply.streamed
        body = _enveloped(reply, began)
        if (
            self._limits.gzip
            and len(body) > _GZIP_BYTES_MIN
            and "gzip" in http.headers.get("Accept-Encoding", "")
        ):
            compressed = web.Response(
                body=body, status=reply.status, content_type=reply.content_type, headers=reply.headers
            )
            compressed.enable_compression(web.ContentCoding.gzip)
            return compressed
        unsent = self._unsent if len(body) > _LARGE_ANSWER_BYTES else None
        if unsent and unsent.bytes_ and unsent.bytes_ + len(body) > self._limits.bodies_bytes_max:
            raise Overloaded("too many bytes of answers wait for their clients; ask for less, or retry later")
        return WholeResponse(
            body, status=reply.status, content_type=reply.content_type, headers=reply.headers, unsent=unsent
        )

    def _failed(self, problem: Exception, request_id: str, path: str, began: float) -> WholeResponse:
        if isinstance(problem, ShoalError):
            return self._refuse(problem, began)
        self._log.error("request.failed", request_id=request_id, path=path[:200], exc=problem)
        name = type(problem).__name__
        return self._refuse(ShoalError(f"internal error ({name}); see the log"), began)

    def _refuse(self, error: ShoalError, began: float) -> WholeResponse:
        headers = {"X-Shoal-Error": error.code}
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, MethodNotAllowed):
            headers["Allow"] = error.allowed
        if isinstance(error, Unauthorized):  # plain text, as clients of this API know it
            text = str(error).encode()
            return WholeResponse(text, status=error.status, content_type="text/plain", headers=headers)
        # `status` first: clients cut the text that they show, and look in what is left.
        body = b'{"status":{"error":%s},"time":%.6f,"result":null}' % (
            msgspec.json.encode(_printable(str(error))),
            time.perf_counter() - began,
        )
        return WholeResponse(body, status=error.status, headers=headers)

    def _finish(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        response: Response,
        request_id: str,
        began: float,
    ) -> None:
        took_ms = (time.perf_counter() - began) * 1000
        kind = (method, response.status)
        counter = self._counters.get(kind)
        if counter is None:
            counter = self._metrics.counter(
                "shoal_http_requests_total", method=_method(method), status=str(response.status)
            )
            if len(self._counters) < _COUNTERS_MAX:  # a client may invent methods
                self._counters[kind] = counter
        counter.add()
        slow = self._limits.slow_request_ms
        if slow and took_ms > slow:
            self._log.warning(
                "request.slow",
                request_id=request_id,
                method=method,
                path=path[:200],
                status=response.status,
                took_ms=round(took_ms, 1),
            )
        if response.prepared:
            return
        response.headers["X-Request-Id"] = request_id
        if self.stopping:
            response.force_close()
        origin = headers.get("origin")
        if origin is not None:
            response.headers.update(_cors(origin, self._limits.cors_origins))

    def _request_id(self, headers: Mapping[str, str]) -> str:
        given = headers.get("x-request-id")
        if given is not None and _REQUEST_ID.match(given):
            return given
        self._requests += 1
        return f"{self._process}{self._requests & 0xFFFF_FFFF:08x}"


def _enveloped(reply: Reply, began: float) -> bytes:
    if reply.raw is not None:
        return reply.raw
    end = _ENVELOPE_END % (time.perf_counter() - began)
    if reply.partial is not None:
        return b'{"result":' + reply.result + b',"partial":' + reply.partial + end
    return b'{"result":' + reply.result + end


def _invite_body(http: web.BaseRequest) -> None:
    """Tell a client that asked first to send its body: curl waits a second for it, others for ever."""
    asked = http.headers.get("Expect", "").lower() == "100-continue" and http.can_read_body
    if asked and http.transport is not None and not http.content.is_eof():
        http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _method(method: str) -> str:
    """A label must not be whatever a client sends."""
    return method if method in {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"} else "other"


def _timeout_s(query: Mapping[str, str], default_s: float) -> float:
    text = query.get("timeout")
    if text is None:
        return default_s
    try:
        value = float(text)
    except ValueError:
        raise BadRequest(f"query parameter timeout: expected seconds, got {text[:40]!r}") from None
    if not 0 < value <= TIMEOUT_MAX_S:
        raise BadRequest(f"query parameter timeout: expected 1 to {TIMEOUT_MAX_S:g} seconds, got {text[:40]}")
    return value


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the body is over {bytes_max} bytes; send smaller batches")


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _cors(origin: str, allowed: tuple[str, ...]) -> dict[str, str]:
    if origin not in allowed and "*" not in allowed:
        return {}
    return {
        "Access-Control-Allow-Origin": "*" if "*" in allowed else origin,
        "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": "api-key, authorization, content-type, idempotency-key, x-request-id",
        "Access-Control-Expose-Headers": "retry-after, x-request-id",
        "Access-Control-Max-Age": "3600",
        "Vary": "Origin",
    }
