"""A plain client for one agent: one keep-alive connection, JSON in and out, no retries."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `body` is None if it isn't JSON."""

    status: int
    text: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def result(self) -> Any:
        """The result, for calls that must succeed."""
        assert self.status == 200, f"status {self.status}: {self.text[:600]}"
        return self.body["result"]

    @property
    def error(self) -> str:
        """The text of the error in the envelope; checks the envelope's shape."""
        assert self.body is not None, f"status {self.status}, not JSON: {self.text[:300]!r}"
        assert self.body["result"] is None, self.text[:300]
        assert "time" in self.body, self.text[:300]
        text = self.body["status"]["error"]
        assert isinstance(text, str)
        return text


class Rest:
    """Calls to 127.0.0.1:port; nothing is raised for a status. Not for use by two threads at once."""

    def __init__(
        self, port: int, *, api_key: str | None = None, timeout_s: float = 30.0, host: str = "127.0.0.1"
    ) -> None:
        self._headers = {"api-key": api_key} if api_key is not None else {}
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout_s)

    def call(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, **query: Any
    ) -> Answer:
        """`body`: bytes as they are, anything else as JSON. `query` values: True becomes "true"."""
        if query:
            flat = {k: str(v).lower() if isinstance(v, bool) else v for k, v in query.items()}
            path += "?" + urlencode(flat)
        sent = dict(self._headers, **(headers or {}))
        data = body
        if body is not None and not isinstance(body, bytes):
            data = json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            self._connection.request(method, path, data, sent)
            response = self._connection.getresponse()
            raw = response.read()
        except BaseException:
            self._connection.close()  # the next call begins on a new connection
            raise
        text = raw.decode("utf-8", "replace")
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        return Answer(response.status, text, parsed, {k.lower(): v for k, v in response.getheaders()})

    def get(self, path: str, **query: Any) -> Answer:
        return self.call("GET", path, **query)

    def put(self, path: str, body: Any = None, **query: Any) -> Answer:
        return self.call("PUT", path, body, **query)

    def post(self, path: str, body: Any = None, **query: Any) -> Answer:
        return self.call("POST", path, body, **query)

    def patch(self, path: str, body: Any = None, **query: Any) -> Answer:
        return self.call("PATCH", path, body, **query)

    def delete(self, path: str, **query: Any) -> Answer:
        return self.call("DELETE", path, **query)

    def close(self) -> None:
        self._connection.close()
