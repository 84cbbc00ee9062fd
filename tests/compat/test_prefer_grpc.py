"""A client that prefers gRPC is told in words that this node speaks REST, with and without TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest

from agent.front.grpc import TEXT
from tests.running.agent import RunningAgent

pytestmark = pytest.mark.compat


def _calls(client: Any) -> list[Callable[[], Any]]:
    from qdrant_client import models

    points = [models.PointStruct(id=i, vector=[1.0] * 384) for i in range(300)]
    return [
        client.get_collections,
        lambda: client.upsert("docs", points),
        lambda: client.upsert("docs", points),
        lambda: client.query_points("docs", query=[1.0, 2.0]),
    ]


def test_each_call_fails_with_a_sentence(new_agent: Callable[..., RunningAgent]) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")  # `make test-long` installs it
    import grpc  # type: ignore[import-untyped]

    agent = new_agent().start()
    client = qdrant_client.QdrantClient(url=agent.url, grpc_port=agent.port + 1, prefer_grpc=True)
    for call in _calls(client):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, TEXT)
    client.close()


def test_under_tls_too_and_rest_goes_on_in_http_1(new_agent: Callable[..., RunningAgent]) -> None:
    pytest.importorskip("qdrant_client")
    import grpc
    import trustme

    agent = new_agent()
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = agent.folder / "node.crt", agent.folder / "node.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    with agent.config_path.open("a") as config:
        config.write(f'\n[tls]\ncert = "{cert}"\nkey = "{key}"\n')
    agent.spawn()

    trusted = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    trusted.set_alpn_protocols(["h2", "http/1.1"])  # as curl and browsers do
    _wait_for_tls(agent, trusted)

    channel = grpc.secure_channel(
        f"localhost:{agent.port + 1}", grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    )
    with channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/qdrant.Collections/List")(b"", timeout=10)
    assert refused.value.details() == TEXT


def _wait_for_tls(agent: RunningAgent, context: ssl.SSLContext) -> None:
    """Until /readyz answers; the protocol agreed on must be HTTP/1.1."""
    import http.client

    from tests.running.waiting import wait_until

    def ready() -> bool:
        connection = http.client.HTTPSConnection("localhost", agent.port, context=context, timeout=5)
        try:
            connection.request("GET", "/readyz")
            assert connection.sock.selected_alpn_protocol() == "http/1.1"
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    wait_until(ready, 20, "readyz under TLS")
