"""Free TCP ports on loopback that no other test process takes at the same time."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from types import TracebackType

# Below the range from which Linux draws the ports of outgoing connections (32768 …): such a port
# could be taken by a client between our check and the agent's bind.
FIRST, LAST = 15000, 31000
GRPC_OFFSET = 1  # where an agent refuses gRPC
PEER_OFFSET = 2  # an agent's peer port is its port + 2 unless the config says otherwise
FRONTS_OFFSET = 3  # where its fronts answer other fronts


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"ports-of-tests-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    return folder


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class PortPair:
    """A port and those taken beside it, held by file locks until `release` or the end of this process."""

    def __init__(self) -> None:
        self._locks: list[int] = []
        self.port = self._draw()

    @property
    def peer_port(self) -> int:
        return self.port + PEER_OFFSET

    def _draw(self) -> int:
        for port in random.sample(range(FIRST, LAST), LAST - FIRST):
            wanted = (port, port + GRPC_OFFSET, port + PEER_OFFSET, port + FRONTS_OFFSET)
            if all(map(_is_free, wanted)) and all(map(self._lock, wanted)):
                return port
            self.release()
        raise RuntimeError(f"no free pair of ports in {FIRST} … {LAST}")

    def _lock(self, port: int) -> bool:
        handle = os.open(_folder() / str(port), os.O_CREAT | os.O_RDWR, 0o600)
        self._locks.append(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        while self._locks:
            os.close(self._locks.pop())

    def __enter__(self) -> PortPair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
