"""Counters, gauges and histograms of one process, kept in its part of the page.

Any front can add up all parts for a scrape, and a process that is restarted goes on counting where
its predecessor stopped. A part is a list of entries: kind, key length, key, padding, value.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from enum import IntEnum

_USED = struct.Struct("<Q")
_ENTRY = struct.Struct("<BxH4x")
_VALUE = struct.Struct("<d")

LATENCY_BUCKETS_S = (
    0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01,
    0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip


class Kind(IntEnum):
    COUNTER = 1
    GAUGE = 2
    HISTOGRAM = 3


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def key_of(name: str, labels: Mapping[str, str]) -> str:
    """A sample's name in the Prometheus text format: name{label="value",…}, labels sorted."""
    if not labels:
        return name
    inner = ",".join(f'{label}="{_escape(value)}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inner}}}"


class Counter:
    """A number that only grows; `set` is for gauges, and for what is counted elsewhere."""

    __slots__ = ("_at", "_part", "_value")

    def __init__(self, part: memoryview, at: int) -> None:
        self._part, self._at = part, at
        (self._value,) = _VALUE.unpack_from(part, at)

    def add(self, amount: float = 1.0) -> None:
        self._value += amount
        _VALUE.pack_into(self._part, self._at, self._value)

    def set(self, value: float) -> None:
        self._value = value
        _VALUE.pack_into(self._part, self._at, value)


class Histogram:
    """Cumulative buckets, as Prometheus wants them; a sample costs three writes, whatever the buckets."""

    __slots__ = ("_bounds", "_buckets", "_count", "_sum")

    def __init__(
        self, bounds: tuple[float, ...], buckets: list[Counter], total: Counter, count: Counter
    ) -> None:
        self._bounds, self._buckets, self._sum, self._count = bounds, buckets, total, count

    def observe(self, value: float) -> None:
        place = bisect_left(self._bounds, value)
        if place < len(self._buckets):
            self._buckets[place].add()  # not cumulative here: `render` adds them up
        self._sum.add(value)
        self._count.add()


class Metrics:
    """One process's metrics. Asking twice for the same name and labels gives the same object.

    When the part is full (thousands of collections), further label sets are counted together under
    the label `collection="(other)"`, never lost and never an error.
    """

    def __init__(self, part: memoryview) -> None:
        self._part = part
        self._objects: dict[str, Counter | Histogram] = {}
        (used,) = _USED.unpack_from(part, 0)
        if used < _USED.size:
            _USED.pack_into(part, 0, _USED.size)
        self._known = {key: at for _, key, at in _entries(part)}

    def counter(self, name: str, **labels: str) -> Counter:
        return self._single(Kind.COUNTER, name, labels)

    def gauge(self, name: str, **labels: str) -> Counter:
        return self._single(Kind.GAUGE, name, labels)

    def histogram(self, name: str, bounds: tuple[float, ...] = LATENCY_BUCKETS_S, **labels: str) -> Histogram:
        key = key_of(name, labels)
        found = self._objects.get(key)
        if found is None:
            buckets = [self._sample(name + "_bucket", {**labels, "le": f"{bound:g}"}) for bound in bounds]
            total, count = self._sample(name + "_sum", labels), self._sample(name + "_count", labels)
            found = self._objects[key] = Histogram(bounds, buckets, total, count)
        assert isinstance(found, Histogram)
        return found

    def _single(self, kind: Kind, name: str, labels: dict[str, str]) -> Counter:
        key = key_of(name, labels)
        found = self._objects.get(key)
        if found is None:
            found = self._objects[key] = self._sample(name, labels, kind)
        assert isinstance(found, Counter)
        return found

    def _sample(self, name: str, labels: Mapping[str, str], kind: Kind = Kind.HISTOGRAM) -> Counter:
        key = key_of(name, labels)
        at = self._known.get(key)
        shared = key_of(name, {**labels, "collection": "(other)"})
        if at is None:
            if "collection" in labels and shared not in self._known:
                self._append(kind, shared)  # while there is room for it
            at = self._append(kind, key)
        if at is None:
            at = self._known.get(shared)
        if at is None:  # not even the shared one fits: count into a private place that nobody reads
            return Counter(memoryview(bytearray(_VALUE.size)), 0)
        return Counter(self._part, at)

    def _append(self, kind: Kind, key: str) -> int | None:
        data = key.encode()
        used: int = _USED.unpack_from(self._part, 0)[0]
        padded = -len(data) % 8
        at = used + _ENTRY.size + len(data) + padded
        if at + _VALUE.size > len(self._part):
            return None
        _ENTRY.pack_into(self._part, used, kind, len(data))
        self._part[used + _ENTRY.size : used + _ENTRY.size + len(data)] = data
        _VALUE.pack_into(self._part, at, 0.0)
        _USED.pack_into(self._part, 0, at + _VALUE.size)  # last: a reader sees whole entries only
        self._known[key] = at
        return at


def _entries(part: memoryview) -> Iterable[tuple[Kind, str, int]]:
    (used,) = _USED.unpack_from(part, 0)
    at = _USED.size
    while at < used:
        kind, size = _ENTRY.unpack_from(part, at)
        key = bytes(part[at + _ENTRY.size : at + _ENTRY.size + size]).decode()
        at += _ENTRY.size + size + -size % 8
        yield Kind(kind), key, at
        at += _VALUE.size


def total(parts: Iterable[memoryview], name: str) -> float:
    """The sum of one sample over all processes and labels."""
    labelled = name + "{"
    found = 0.0
    for part in parts:
        for _, key, at in _entries(part):
            if key == name or key.startswith(labelled):
                found += _VALUE.unpack_from(part, at)[0]
    return found


def _family(key: str, kind: Kind) -> str:
    name = key.split("{", 1)[0]
    if kind is Kind.HISTOGRAM:
        for suffix in ("_bucket", "_sum", "_count"):
            name = name.removesuffix(suffix)
    return name


def _order(key: str) -> tuple[str, float]:
    """Sort key: buckets of one histogram stand together, by their bound."""
    before, found, rest = key.partition('le="')
    if not found:
        return key, 0.0
    bound, _, after = rest.partition('"')
    return before + after, float(bound)


def render(parts: Iterable[memoryview], helps: Mapping[str, str], gauges: Mapping[str, float]) -> str:
    """All processes' metrics in the Prometheus text format, added up; `gauges` are the asker's own
    samples (key → value), measured at the scrape."""
    totals: dict[str, float] = {}
    kinds: dict[str, Kind] = {}
    for part in parts:
        for kind, key, at in _entries(part):
            totals[key] = totals.get(key, 0.0) + _VALUE.unpack_from(part, at)[0]
            kinds[key] = kind
    for key, value in gauges.items():
        totals[key], kinds[key] = value, Kind.GAUGE
    families: dict[str, list[str]] = {}
    for key in totals:
        families.setdefault(_family(key, kinds[key]), []).append(key)
    lines: list[str] = []
    for family, keys in sorted(families.items()):
        kind = kinds[keys[0]]
        lines.append(f"# HELP {family} {helps.get(family, family.replace('_', ' '))}")
        lines.append(f"# TYPE {family} {kind.name.lower()}")
        lines.extend(_histogram_lines(family, keys, totals) if kind is Kind.HISTOGRAM else
                     [f"{key} {totals[key]:.12g}" for key in sorted(keys)])  # fmt: skip
    return "\n".join(lines) + "\n"


def _histogram_lines(family: str, keys: list[str], totals: Mapping[str, float]) -> list[str]:
    lines: list[str] = []
    running, series = 0.0, ""
    for key in sorted((k for k in keys if k.startswith(family + "_bucket")), key=_order):
        if _order(key)[0] != series:
            running, series = 0.0, _order(key)[0]
        running += totals[key]
        lines.append(f"{key} {running:.12g}")
    for key in sorted(k for k in keys if k.startswith(family + "_count")):
        _, brace, labels = key.partition("{")
        inner = f"{labels[:-1]}," if brace else ""
        lines.append(f'{family}_bucket{{{inner}le="+Inf"}} {totals[key]:.12g}')
        lines.append(f"{key} {totals[key]:.12g}")
    lines.extend(f"{key} {totals[key]:.12g}" for key in sorted(keys) if key.startswith(family + "_sum"))
    return lines
