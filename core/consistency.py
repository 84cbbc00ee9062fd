"""What a request's query string asks of writes and reads, as the level that serves it."""

from __future__ import annotations

from core.errors import BadRequest
from core.replication.effects import Consistency
from core.replication.reads import majority

ORDERINGS = ("weak", "medium", "strong")
LEVELS = tuple(level.value for level in Consistency)
_READS = {
    "majority": Consistency.QUORUM,
    "all": Consistency.STRONG,
    **{level.value: level for level in Consistency},
}
_DIGITS_MAX = 9


def write_level(
    ordering: str | None, consistency: str | None, default: Consistency = Consistency.QUORUM
) -> Consistency:
    """What a write's acknowledgement means. `consistency` goes before `ordering`. Raises BadRequest."""
    if ordering is not None and ordering not in ORDERINGS:
        raise _unknown("ordering", ", ".join(ORDERINGS), ordering)
    if consistency is not None:
        if consistency not in LEVELS:
            raise _unknown("consistency", ", ".join(LEVELS), consistency)
        return Consistency(consistency)
    match ordering:
        case "medium":
            return Consistency.QUORUM
        case "strong":
            return Consistency.STRONG
    return default


def read_level(consistency: str | None, replicas: int) -> Consistency:
    """What a read has to see. A number is one of replicas that agree. Raises BadRequest."""
    if consistency is None:
        return Consistency.EVENTUAL
    level = _READS.get(consistency)
    if level is not None:
        return level
    digits = consistency.isascii() and consistency.isdigit() and len(consistency) <= _DIGITS_MAX
    wanted = int(consistency) if digits else 0
    if wanted < 1:
        raise _unknown("consistency", f"a number or {', '.join(_READS)}", consistency)
    if wanted == 1:
        return Consistency.EVENTUAL
    return Consistency.QUORUM if wanted <= majority(replicas) else Consistency.STRONG


def _unknown(name: str, expected: str, found: str) -> BadRequest:
    return BadRequest(f"query parameter {name}: expected {expected}, got {found[:40]!r}")
