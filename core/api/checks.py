"""Checks that many requests share: ranges, names, and what Shoal refuses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from core.errors import BadRequest, NotSupported, Unprocessable

_NAME = re.compile(r"[^<>:\"/\\|?*\x00-\x1f\x7f]{1,255}")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for. Settings of the cluster; these are the defaults."""

    limit_max: int = 1_000_000
    offset_max: int = 10_000_000
    batch_max: int = 4_096  # searches in a query batch, operations in an update batch
    filter_depth_max: int = 32
    filter_conditions_max: int = 100_000
    prefetch_depth_max: int = 16
    prefetches_max: int = 256
    formula_nodes_max: int = 4_096
    examples_max: int = 4_096
    matrix_sample_max: int = 10_000
    vector_size_max: int = 65_536
    vectors_max: int = 256
    shards_max: int = 1_024


DEFAULT_LIMITS = Limits()


def show(value: object) -> str:
    """A value as an error text may carry it: short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def at_least(field: str, value: int | None, lowest: int) -> None:
    if value is not None and value < lowest:
        raise Unprocessable(
            f"Validation error in JSON body: "
            f"[{field}: value {show(value)} invalid, must be {lowest} or larger]"
        )


def within(field: str, value: float | None, lowest: float, highest: float) -> None:
    if value is not None and not lowest <= value <= highest:
        raise Unprocessable(
            f"Validation error in JSON body: "
            f"[{field}: value {show(value)} invalid, must be from {lowest} to {highest}]"
        )


def at_most(field: str, value: int | None, highest: int) -> None:
    """A bound of Shoal's own, not of the API: 400."""
    if value is not None and value > highest:
        raise BadRequest(f"{field}: {show(value)} is over this cluster's limit of {highest}")


def invalid(field: str, why: str) -> Unprocessable:
    return Unprocessable(f"Validation error in JSON body: [{field}: {why}]")


def refuse(field: str, value: Any, what: str) -> None:
    """Raises NotSupported if a field that Shoal does not support is set."""
    if value is not None:
        raise NotSupported(f"{field}: {what} not supported")


def refuse_shard_key(value: Any, field: str = "shard_key") -> None:
    if value is not None and value != []:
        raise NotSupported(f"{field}: shard keys (custom sharding) are not supported")


def check_name(kind: str, name: str) -> str:
    """A collection's or alias's name. It never becomes a file name, yet it travels in paths and logs."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise Unprocessable(
            f"{kind} name {show(name)} is not valid: 1 to 255 characters, "
            'none of < > : " / \\ | ? * or control characters'
        )
    return name


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise BadRequest(
            f"Wrong input: {field}: unknown variant {show(value)}, expected one of {', '.join(allowed)}"
        )
    return value
