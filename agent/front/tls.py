"""The certificate that clients see, taken up anew when its files change, without a restart."""

from __future__ import annotations

import os
import ssl

from core.config import TlsConfig


class Certificates:
    """A server's TLS context. `reload` puts a renewed certificate into it; open connections keep theirs."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        # HTTP/2 only for who offers nothing else: gRPC clients, which are told in words to use REST.
        self.context.set_alpn_protocols(["http/1.1", "h2"])
        self._seen: tuple[int, int] | None = None
        self.reload()

    def reload(self) -> bool:
        """True if the files had changed. Raises OSError or ssl.SSLError; the former pair then stays."""
        seen = (os.stat(self._config.cert).st_mtime_ns, os.stat(self._config.key).st_mtime_ns)
        if seen == self._seen:
            return False
        # Tried on a context of its own first: a half-written pair must not break the one in use.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._config.cert, self._config.key)
        self.context.load_cert_chain(self._config.cert, self._config.key)
        self._seen = seen
        return True
