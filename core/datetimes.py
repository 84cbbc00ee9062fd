"""Datetimes in payloads and filters: RFC 3339 and its usual shortenings, as microseconds since 1970 UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_FORM = re.compile(
    r"\s*(\d{4})-(\d{1,2})-(\d{1,2})"
    r"(?:[Tt ](\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.(\d{1,9})\d*)?)?"
    r"(?: ?(?:([Zz])|(UTC)|([+-])(\d{2}):?(\d{2})?))?)?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@lru_cache(maxsize=4096)
def parse_datetime(text: str) -> int | None:
    """Microseconds since 1970 UTC, or None if the text is no datetime. Without a zone it is UTC."""
    form = _FORM.fullmatch(text)
    if form is None:
        return None
    year, month, day, hour, minute, second, fraction, _z, _utc, sign, zone_h, zone_m = form.groups()
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0),
            int((fraction or "")[:6].ljust(6, "0")), UTC,
        )  # fmt: skip
    except ValueError:
        return None
    micros = (moment - _EPOCH) // _MICROSECOND
    if sign is not None:
        hours, minutes = int(zone_h), int(zone_m or 0)
        if hours > 23 or minutes > 59:
            return None
        offset = (hours * 60 + minutes) * 60_000_000
        micros += offset if sign == "-" else -offset
    return micros


def format_datetime(micros: int) -> str:
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")
