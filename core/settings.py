"""The cluster's settings: what may be changed while it runs, within which bounds, and the defaults.

What belongs to one machine is in its cluster.toml instead, never in both. A setting that is not given has
this version's default; only what was given is stored.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from core.api.checks import DEFAULT_LIMITS, Limits, show
from core.errors import BadRequest

MIB, GIB = 1 << 20, 1 << 30


class Settings(Struct, frozen=True, kw_only=True):
    """Every setting, with its bounds. Units are in the names."""

    # Requests
    body_bytes_max: Annotated[int, Meta(ge=1 << 10, le=GIB)] = 32 * MIB
    requests_max: Annotated[int, Meta(ge=16, le=65_536)] = 1_024  # under way at once, in one front
    client_connections_max: Annotated[int, Meta(ge=16, le=65_536)] = 2_048  # of one address, at one front
    timeout_s: Annotated[float, Meta(ge=0.1, le=3_600)] = 60.0  # of a request that says none

    # What one request may ask for
    limit_max: Annotated[int, Meta(ge=1)] = DEFAULT_LIMITS.limit_max
    offset_max: Annotated[int, Meta(ge=0)] = DEFAULT_LIMITS.offset_max
    batch_max: Annotated[int, Meta(ge=1)] = DEFAULT_LIMITS.batch_max
    filter_depth_max: Annotated[int, Meta(ge=1, le=128)] = DEFAULT_LIMITS.filter_depth_max
    filter_conditions_max: Annotated[int, Meta(ge=1)] = DEFAULT_LIMITS.filter_conditions_max
    prefetch_depth_max: Annotated[int, Meta(ge=1, le=128)] = DEFAULT_LIMITS.prefetch_depth_max
    prefetches_max: Annotated[int, Meta(ge=1)] = DEFAULT_LIMITS.prefetches_max
    formula_nodes_max: Annotated[int, Meta(ge=1)] = DEFAULT_LIMITS.formula_nodes_max
    examples_max: Annotated[int, Meta(ge=1)] = DEFAULT_LIMITS.examples_max
    matrix_sample_max: Annotated[int, Meta(ge=2)] = DEFAULT_LIMITS.matrix_sample_max
    vector_size_max: Annotated[int, Meta(ge=1, le=1 << 20)] = DEFAULT_LIMITS.vector_size_max
    vectors_max: Annotated[int, Meta(ge=1, le=4_096)] = DEFAULT_LIMITS.vectors_max
    shards_max: Annotated[int, Meta(ge=1, le=4_096)] = DEFAULT_LIMITS.shards_max

    # Which replica serves a read
    read_strategy: Literal[
        "adaptive",
        "round_robin",
        "least_connections",
        "least_loaded",
        "weighted_round_robin",
        "locality_aware",
        "random",
    ] = "adaptive"
    read_weights: dict[str, Annotated[float, Meta(ge=0, le=1_000)]] = {}  # node → weight, 1 if not named

    # Graphs and tails
    tail_rows_max: Annotated[int, Meta(ge=1_000, le=1_000_000)] = 8_000  # beyond it writes slow down
    build_start_rows: Annotated[int, Meta(ge=500, le=1_000_000)] = 4_000  # a longer tail is folded

    # Deleted collections
    deleted_keep_s: Annotated[float, Meta(ge=0)] = 86_400.0
    deleted_bytes_max: Annotated[int, Meta(ge=0)] = 10 * GIB
    deleted_collections_max: Annotated[int, Meta(ge=0)] = 100

    def limits(self) -> Limits:
        return Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})


KNOWN: tuple[str, ...] = Settings.__struct_fields__
_DEFAULTS = msgspec.to_builtins(Settings())


def settings_of(values: Mapping[str, Any]) -> Settings:
    """The settings with these values given. Raises BadRequest that tells every mistake."""
    mistakes: list[str] = []
    for name, value in values.items():
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, 1)
            mistakes.append(f"{name[:60]}: no such setting{f', did you mean {near[0]}?' if near else ''}")
            continue
        try:
            msgspec.convert({name: value}, Settings)
        except msgspec.ValidationError as e:
            mistakes.append(f"{name}: {show(value)}: {str(e).partition(' - at')[0].replace('`', '')}")
    if mistakes:
        raise BadRequest("; ".join(mistakes))
    chosen = msgspec.convert(dict(values), Settings)
    if chosen.build_start_rows >= chosen.tail_rows_max:
        raise BadRequest(
            f"build_start_rows: {chosen.build_start_rows} is not below tail_rows_max, "
            f"{chosen.tail_rows_max}: writes would wait for a fold that does not begin"
        )
    return chosen


def changed(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with a change: null takes a setting back to its default. Raises BadRequest."""
    unknown = {name: value for name, value in change.items() if value is None and name not in KNOWN}
    settings_of({**unknown, **{name: value for name, value in change.items() if value is not None}})
    new = {name: value for name, value in {**values, **change}.items() if value is not None}
    settings_of(new)
    return new


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a change means: name → value before and after, defaults filled in."""
    before, after = {**_DEFAULTS, **old}, {**_DEFAULTS, **new}
    return {name: (before[name], after[name]) for name in KNOWN if before[name] != after[name]}
