"""What makes a peer one of us, read from the files that cluster.toml names: the secrets, the certificates."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from core.config import ClusterConfig
from core.errors import StartRefused
from net.peer_link import Trust

SECRET_CHARS_MIN = 16


def is_networked(config: ClusterConfig) -> bool:
    """Whether nodes could know each other at all."""
    return config.secret_file is not None or (config.tls is not None and config.tls.ca is not None)


def trust_of(config: ClusterConfig) -> Trust:
    """Raises StartRefused if a secret or a certificate can't be used."""
    secrets = _secrets(Path(config.secret_file)) if config.secret_file is not None else ()
    tls = config.tls
    if tls is None or tls.ca is None:
        return Trust(secrets)
    try:
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.ca)
        client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca)
        for context in (server, client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            # The CA is the cluster's own: who holds a certificate of it is a node, whatever its address.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as problem:
        raise StartRefused(f"[tls] cert {tls.cert}, key {tls.key}, ca {tls.ca}: {problem}") from None
    return Trust(secrets, client, server)


def _secrets(path: Path) -> tuple[bytes, ...]:
    """One a line, the newest first; two while one is rotated."""
    try:
        text = path.read_text()
        mode = os.stat(path).st_mode & 0o777
    except (OSError, UnicodeDecodeError) as problem:
        raise StartRefused(f"secret_file {path} cannot be read: {problem}") from None
    if mode & 0o007:
        raise StartRefused(f"secret_file {path} is open to everybody (mode {mode:o}): chmod 600")
    secrets = [line.strip() for line in text.splitlines() if line.strip()]
    if not secrets or any(len(secret) < SECRET_CHARS_MIN for secret in secrets):
        raise StartRefused(
            f"secret_file {path} needs a secret of {SECRET_CHARS_MIN} characters or more: "
            "openssl rand -hex 32"
        )
    return tuple(secret.encode() for secret in secrets)
