"""What an error of the disk means for a shard: no room, damage, or a disk not to be trusted."""

from __future__ import annotations

import errno
import sqlite3

from agent.points_reader import damage
from core.errors import Damaged, NoRoom, ShoalError, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_error(error: Exception, what: str) -> ShoalError:
    """NoRoom (it may pass), Damaged, or Unavailable: only a start that reads the disk again can go on."""
    if isinstance(error, ShoalError):
        return error
    if isinstance(error, OSError) and error.errno in _FULL:
        return NoRoom(f"no room for {what} ({error.strerror}); free some disk space, writes then go on")
    if isinstance(error, sqlite3.DatabaseError):
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return NoRoom(f"no room for {what} ({error}); free some disk space, writes then go on")
        found = damage(error)
        if isinstance(found, Damaged):
            return found
    return Unavailable(f"{what} failed ({error!r}); writes are refused until the agent is restarted")
