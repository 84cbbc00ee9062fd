"""The few calls of the Qdrant REST API that the demo makes, over one kept connection."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.config_values import host_port
from core.errors import ShoalError, Unavailable

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer to a search."""

    id: int
    score: float
    payload: Json


class Rest:
    """Talks to one node. Not for several threads."""

    def __init__(self, host: str, port: int, *, timeout_s: float = 30.0) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout_s)

    @classmethod
    def at(cls, address: str) -> Rest:
        return cls(*host_port(address))

    def close(self) -> None:
        self._connection.close()

    def call(self, method: str, path: str, body: Json | None = None) -> Any:
        """The `result` of a call. Raises ShoalError with what the node said, or Unavailable."""
        try:
            status, data = self._send(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise Unavailable(f"{method} {path}: the node does not answer: {error}") from None
        if status != 200:
            raise ShoalError(
                f"{method} {path}: the node answered {status}: {data.decode(errors='replace')[:500]}"
            )
        return json.loads(data)["result"]

    def search(
        self,
        collection: str,
        vector: Sequence[float],
        *,
        limit: int,
        module: str | None = None,
        exact: bool = False,
        with_payload: bool = True,
    ) -> list[Hit]:
        """The nearest points, best first; within one module if it is given."""
        body: Json = {"query": list(vector), "limit": limit, "with_payload": with_payload}
        if module is not None:
            body["filter"] = {"must": [{"key": "module", "match": {"value": module}}]}
        if exact:
            body["params"] = {"exact": True}
        points = self.call("POST", f"/collections/{collection}/points/query", body)["points"]
        return [Hit(point["id"], point["score"], point.get("payload") or {}) for point in points]

    def _send(self, method: str, path: str, body: Json | None) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body)
        was_kept = self._connection.sock is not None
        try:
            return self._send_once(method, path, data)
        except ConnectionError:
            if not was_kept:
                raise
            # It may have been idle for too long, or of a node that has died and is back. Twice does no harm:
            # what the demo writes is the same each time.
            self._connection.close()
            return self._send_once(method, path, data)

    def _send_once(self, method: str, path: str, data: str | None) -> tuple[int, bytes]:
        self._connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = self._connection.getresponse()
        return answer.status, answer.read()
