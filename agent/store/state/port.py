"""StateStore: the port to the few keys that hold a cluster's truth, and what every adapter promises.

* `read` and `compare_and_set` of a key are linearizable. Versions of a key only grow.
* A key that never was, or was deleted, reads as value None; its version is what the next CAS must name.
* `watch` is a hint: what rests on it reads, or CASes at the version that it gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Versioned:
    value: bytes | None
    version: int


@dataclass(frozen=True, slots=True)
class VersionConflict:
    """The key was not at the version that the CAS named. Nothing was changed, nor will be."""

    current: Versioned


class StateStore(Protocol):
    """Every call raises Unavailable or DeadlineExceeded if the voters don't answer.

    A CAS that raises one of them may still take effect: read before you decide anything.
    """

    async def read(self, key: str) -> Versioned: ...

    async def compare_and_set(self, key: str, version: int, value: bytes) -> int | VersionConflict:
        """The new version, or why not. A CAS that changed nothing answers a conflict, even of nothing."""
        ...

    async def delete(self, key: str, version: int) -> int | VersionConflict: ...

    async def watch(self, key: str, after_version: int) -> Versioned:
        """Waits until the key has a version above `after_version`. The caller owns the timeout."""
        ...

    async def list(self, prefix: str) -> dict[str, Versioned]:
        """The keys under a prefix that have a value, each read by itself: no snapshot of them together."""
        ...
