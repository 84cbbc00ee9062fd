"""Which level Qdrant's words, numbers and our own words for consistency mean."""

from __future__ import annotations

import pytest

from core.consistency import read_level, write_level
from core.errors import BadRequest
from core.replication.effects import Consistency

EVENTUAL, QUORUM, STRONG = Consistency.EVENTUAL, Consistency.QUORUM, Consistency.STRONG


@pytest.mark.parametrize(
    ("ordering", "consistency", "level"),
    [
        (None, None, QUORUM),
        ("weak", None, QUORUM),
        ("medium", None, QUORUM),
        ("strong", None, STRONG),
        (None, "eventual", EVENTUAL),
        (None, "quorum", QUORUM),
        (None, "strong", STRONG),
        ("strong", "eventual", EVENTUAL),
    ],
)
def test_what_a_write_asks_for(ordering: str | None, consistency: str | None, level: Consistency) -> None:
    assert write_level(ordering, consistency) is level


def test_weak_is_the_default_and_medium_is_not() -> None:
    assert write_level("weak", None, EVENTUAL) is EVENTUAL
    assert write_level(None, None, STRONG) is STRONG
    assert write_level("medium", None, EVENTUAL) is QUORUM


@pytest.mark.parametrize(
    ("consistency", "replicas", "level"),
    [
        (None, 3, EVENTUAL),
        ("1", 3, EVENTUAL),
        ("2", 3, QUORUM),
        ("3", 3, STRONG),
        ("4", 3, STRONG),
        ("3", 5, QUORUM),
        ("2", 1, STRONG),
        ("majority", 3, QUORUM),
        ("quorum", 3, QUORUM),
        ("all", 3, STRONG),
        ("eventual", 3, EVENTUAL),
        ("strong", 3, STRONG),
    ],
)
def test_what_a_read_asks_for(consistency: str | None, replicas: int, level: Consistency) -> None:
    assert read_level(consistency, replicas) is level


@pytest.mark.parametrize("consistency", ["", "0", "-1", "1.5", "most", "٣", "9" * 40])
def test_an_unknown_consistency_of_a_read_is_named(consistency: str) -> None:
    with pytest.raises(BadRequest, match="query parameter consistency: expected a number or majority"):
        read_level(consistency, 3)


@pytest.mark.parametrize(
    ("ordering", "consistency", "name"), [("mild", None, "ordering"), (None, "all", "consistency")]
)
def test_an_unknown_word_of_a_write_is_named(
    ordering: str | None, consistency: str | None, name: str
) -> None:
    with pytest.raises(BadRequest, match=f"query parameter {name}: expected "):
        write_level(ordering, consistency)
