"""`with_payload` and `with_vector`: what part of a point an answer carries."""

from __future__ import annotations

from msgspec import Struct

from core.errors import BadRequest
from core.payload import EVERYTHING, NOTHING, PayloadSelector, parse_path


class SelectBody(Struct, frozen=True, forbid_unknown_fields=True):
    include: list[str] | None = None
    exclude: list[str] | None = None


WithPayload = bool | list[str] | SelectBody | None
WithVector = bool | list[str] | None
VectorSelector = bool | tuple[str, ...]
"""All vectors, none, or those of these names (a point that lacks one answers without it)."""


def parse_with_payload(given: WithPayload, *, default: bool) -> PayloadSelector:
    if given is None:
        given = default
    if isinstance(given, bool):
        return EVERYTHING if given else NOTHING
    if isinstance(given, list):
        return PayloadSelector(wanted=True, include=tuple([parse_path(path) for path in given]))
    if (given.include is None) == (given.exclude is None):
        raise BadRequest("Wrong input: with_payload: expected one of include and exclude")
    if given.include is not None:
        return PayloadSelector(wanted=True, include=tuple([parse_path(path) for path in given.include]))
    assert given.exclude is not None
    return PayloadSelector(wanted=True, exclude=tuple([parse_path(path) for path in given.exclude]))


def parse_with_vector(
    given: WithVector, alias: WithVector = None, *, default: bool = False
) -> VectorSelector:
    """`with_vectors`, the older spelling, counts where `with_vector` is missing."""
    chosen = alias if given is None else given
    if chosen is None:
        return default
    return chosen if isinstance(chosen, bool) else tuple(chosen)
