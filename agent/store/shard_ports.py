"""What a shard needs of its process, its bounds, and what it tells metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from agent.page import Page, ShardPlaces
from agent.store.files import Files
from net.logs import Log


class ShardSettings(msgspec.Struct, frozen=True):
    """Bounds of one shard."""

    tail_rows_max: int = 8_000
    """Acknowledgements slow down when more rows than this are in no graph yet."""
    bulk: bool = False
    """Let the tail grow: searches get slower until the builder has caught up."""
    queue_bytes_max: int = 64 << 20
    queue_entries_max: int = 4_096
    checkpoint_bytes_min: int = 1 << 20
    checkpoint_bytes_max: int = 256 << 20
    """A checkpoint is due after a part of the shard's size in log or in dead rows, within these."""
    checkpoint_every_s: float = 60.0
    log_bytes_kept: int = 64 << 20
    """Of the log, for replicas that lack it; one that lacks more gets a snapshot."""
    purge_after_s: float = 10.0
    """How long a read that began before a row died can keep it; a slower one must begin again."""


@dataclass(frozen=True, slots=True)
class ShardPorts:
    """What a shard needs of its process."""

    page: Page
    places: ShardPlaces
    executor: Executor
    log: Log
    files: Files = field(default_factory=Files)
    now_us: Callable[[], int] = lambda: time.time_ns() // 1000
    on_sync: Callable[[float], None] = lambda took_s: None
    """Told how long each fsync of a log took."""
    searched: Callable[[], bool] = lambda: True
    """Whether somebody searches these days: then the tail stays short."""


class ShardStatistics(NamedTuple):
    """For metrics; counts since the start, unless the name says otherwise."""

    queue_entries: int
    queue_bytes: int
    tail_rows: int
    delay_s: float
    """What acknowledgements were last held back by."""
    groups: int
    entries: int
    log_bytes: int
    sync_s: float
    apply_s: float
    rows: int
    dead_rows: int
    checkpoints: int
    checkpoint_s: float
    """How long the last one took."""
    deaths: int
    """How often work beside the writes ended by a bug."""
