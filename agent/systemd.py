"""What systemd is told: readiness, the watchdog, stopping (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send `state` to the service manager; nothing happens when there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # One that is gone must not keep a node from its work, least of all from stopping in order.
        with suppress(OSError):
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(state.encode())


def watchdog_interval_s() -> float | None:
    """How often systemd expects a sign of life, or None when it does not watch this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    interval_us = os.environ.get("WATCHDOG_USEC")
    return int(interval_us) / 1e6 if interval_us else None
