"""One reader for each kind of value in cluster.toml: what TOML gave in, a plain value or "expected …" out."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

Reader = Callable[[object], object]
"""Raises ValueError with what was expected."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?(%|[kKMGT]?i?B)")
_ORIGIN = re.compile(r"\*|https?://[^/\s,]+")
_UNIT_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True)
class Watermark:
    """An amount, or a share of the whole disk or memory; the larger counts."""

    amount_bytes: int = 0
    percent: float = 0.0

    def of(self, total_bytes: int) -> int:
        """In bytes, where there are so many in all."""
        return max(self.amount_bytes, int(total_bytes * self.percent / 100))

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent else f"{self.amount_bytes}B"


def name(value: object) -> str:
    """An id of a node or a cluster. It becomes the name of a folder, so it can't have dots or slashes."""
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise ValueError("1 to 63 letters, digits, - or _, the first a letter or a digit")


def zone(value: object) -> str:
    """As a name, or empty."""
    return "" if value == "" else name(value)


def path(value: object) -> str:
    """A path as it stands; relative ones are placed by whoever knows the file's folder."""
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return value
    raise ValueError("a path")


def placed(folder: str, value: str) -> str:
    """A path counted from the file's folder."""
    return posixpath.normpath(posixpath.join(folder, value))


def state(value: object) -> str:
    """Where the cluster's truth is kept."""
    if value == "voters":
        return "voters"
    scheme, found, hosts = value.partition("://") if isinstance(value, str) else ("", "", "")
    if found and scheme in ("etcd", "etcds") and all(map(_split, hosts.split(","))):
        return f"{scheme}://{hosts}"
    raise ValueError('"voters", or "etcd://host:port" (several after commas; etcds:// for TLS)')


def address(value: object) -> str:
    """host:port, an IPv6 host in brackets."""
    if isinstance(value, str) and (parts := _split(value)) and _is_host(parts[0]) and 1 <= parts[1] <= 65535:
        return value
    raise ValueError("host:port with a port from 1 to 65535, such as 127.0.0.1:6333 or [::1]:6333")


def dial(value: object) -> dict[str, str]:
    """Names of nodes, or of two with an arrow between them → host:port."""
    if isinstance(value, dict):
        return {str(link): address(to) for link, to in value.items()}
    raise ValueError('a table of links, such as {"n1->n2" = "127.0.0.1:7335"}')


def host_port(text: str) -> tuple[str, int]:
    """An address that `address` accepted, taken apart, without brackets."""
    parts = _split(text)
    if parts is None:
        raise ValueError("not host:port")
    return parts


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. Any name but localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def weight(value: object) -> float:
    """How much of the cluster a node takes, relative to the others."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1000:
        return float(value)
    raise ValueError("a number above 0, up to 1000")


def boolean(value: object) -> bool:
    """TOML's own; not 0, not "yes"."""
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def fronts(value: object) -> int | None:
    """How many serving processes; None: chosen by the number of cores."""
    if value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256:
        return value
    raise ValueError('a whole number from 1 to 256, or "auto"')


def whole(low: int, high: int) -> Reader:
    """A reader of whole numbers in a range, both ends in it."""

    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(f"a whole number from {low} to {high}")

    return read


def one_of(*choices: str) -> Reader:
    """A reader of one of a few words."""

    def read(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise ValueError(" or ".join(f'"{choice}"' for choice in choices))

    return read


def watermark(value: object) -> Watermark:
    """Bytes (a number, or "512MB", "2 GiB"; powers of 1024 either way) or a share ("5%")."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62:
        return Watermark(amount_bytes=value)
    if isinstance(value, str) and (found := _AMOUNT.fullmatch(value.strip())):
        number, unit = Decimal(found[1]), found[2].upper().rstrip("IB")  # floats lose bytes above 2^53
        if unit == "%" and number < 100:
            return Watermark(percent=float(number))
        if unit != "%" and (amount := number * 1024 ** _UNIT_POWER[unit]) < 1 << 62:
            return Watermark(amount_bytes=int(amount))
    raise ValueError('a number of bytes, an amount such as "512MB" or "2GB", or a share under "100%"')


def origins(value: object) -> tuple[str, ...]:
    """Of web pages, as browsers send them."""
    if isinstance(value, list) and all(isinstance(item, str) and _ORIGIN.fullmatch(item) for item in value):
        return tuple(value)
    raise ValueError('a list of origins such as ["https://app.example.com"], or ["*"]')


def from_text(reader: Reader, text: str) -> object:
    """What a variable of the environment says, read as the kind of value that the key wants."""
    expected = ""
    for candidate in _meanings(text.strip()):
        try:
            return reader(candidate)
        except ValueError as error:
            expected = str(error)
    raise ValueError(expected)


def _meanings(text: str) -> Iterator[object]:
    """A variable is only text: it may mean a truth value, a number, a list or, last, itself."""
    if text.lower() in ("true", "yes", "on", "1"):
        yield True
    if text.lower() in ("false", "no", "off", "0"):
        yield False
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        yield int(text)
    if re.fullmatch(r"[+-]?\d{1,18}\.\d{1,18}", text):
        yield float(text)
    yield [item.strip() for item in text.split(",") if item.strip()]
    yield text


def _split(text: str) -> tuple[str, int] | None:
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or (":" in host) != bracketed:
        return None
    return host[1:-1] if bracketed else host, int(port)


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Digits and dots alone are a mistyped IPv4 address, not a name.
        return bool(_HOST_NAME.fullmatch(host)) and not re.fullmatch(r"[\d.]+", host) and len(host) <= 253
    return True
