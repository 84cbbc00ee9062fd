"""Handlers that write points: the body goes to the store as it came, which parses, routes and waits."""

from __future__ import annotations

import time

from agent.front.access import Role
from agent.front.routes import Handler, Reply, Request, Route, flag, served_with
from agent.front.serving import Serving
from agent.link import Client
from agent.metrics import Metrics
from core.consistency import write_level
from core.errors import BadRequest

IDEMPOTENCY_KEY_CHARS_MAX = 255


class Points:
    """Upserts, deletes, vector and payload edits, and batches of them."""

    def __init__(self, link: Client, serving: Serving, metrics: Metrics) -> None:
        self._link, self._serving, self._metrics = link, serving, metrics

    def routes(self) -> list[Route]:
        points = "/collections/*/points"
        return [
            Route("PUT", points, Role.FULL, self._write("upsert")),
            Route("POST", f"{points}/delete", Role.FULL, self._write("delete")),
            Route("PUT", f"{points}/vectors", Role.FULL, self._write("update_vectors")),
            Route("POST", f"{points}/vectors/delete", Role.FULL, self._write("delete_vectors")),
            Route("POST", f"{points}/payload", Role.FULL, self._write("set_payload")),
            Route("PUT", f"{points}/payload", Role.FULL, self._write("overwrite_payload")),
            Route("POST", f"{points}/payload/delete", Role.FULL, self._write("delete_payload")),
            Route("POST", f"{points}/payload/clear", Role.FULL, self._write("clear_payload")),
            Route("POST", f"{points}/batch", Role.FULL, self._write("batch")),
        ]

    def _write(self, kind: str) -> Handler:
        async def write(request: Request) -> Reply:
            began = time.perf_counter()
            name = request.parameters[0]
            asked = request.query.get("ordering"), request.query.get("consistency")
            level = write_level(*asked)
            header = {
                "collection": name,
                "kind": kind,
                "wait": flag(request.query, "wait"),
                "idempotency_key": _idempotency_key(request),
                "consistency": level.value,
            }
            _, result = await self._link.call(
                "points.write", header, request.body, timeout_s=request.left_s()
            )
            self._metrics.histogram("shoal_write_seconds", collection=self._serving.label(name)).observe(
                time.perf_counter() - began
            )
            return Reply(result, headers=None if asked == (None, None) else served_with(level))

        return write


def _idempotency_key(request: Request) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > IDEMPOTENCY_KEY_CHARS_MAX:
        raise BadRequest(f"header Idempotency-Key: over {IDEMPOTENCY_KEY_CHARS_MAX} characters")
    return key
