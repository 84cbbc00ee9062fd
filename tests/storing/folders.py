"""A folder in memory where there is one: thousands of fsyncs cost nothing, and are counted all the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Gone afterwards."""
    there = _MEMORY if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 1 << 30 else None
    folder = Path(tempfile.mkdtemp(prefix="shoal-test-", dir=there))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
