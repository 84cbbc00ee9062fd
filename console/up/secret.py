"""The secret by which the nodes of a local cluster know each other: made once, if the file names none."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path

from core.config import ClusterConfig
from core.config_values import host_port, is_loopback
from core.errors import StartRefused
from net.trust import is_networked

_FILE = "cluster.secret"  # ids of nodes have no dots, so this is nobody's folder


def with_secret(config: ClusterConfig) -> ClusterConfig:
    """The same cluster, networked. Raises StartRefused if that needs a secret that people must choose."""
    if is_networked(config):
        return config
    for node in config.nodes:
        for address in (node.address, node.peer_address, node.listen):
            if not is_loopback(host_port(address)[0]):
                raise StartRefused(
                    f"node {node.id} has the address {address}, which others can reach: name a secret_file "
                    "under [cluster]. One is made by: (umask 077; openssl rand -hex 32 > secret)"
                )
    path = Path(config.data_dir) / _FILE
    try:
        _make(path)
    except OSError as problem:
        raise StartRefused(f"the secret of the nodes cannot be kept in {path}: {problem.strerror}") from None
    return replace(config, secret_file=str(path))


def _make(path: Path) -> None:
    """Whole or not at all, and not anew if it is there: its nodes keep theirs until they are restarted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(handle)
    draft.replace(path)
