"""What must hold of registers and leaders, checked as each operation ends and each leader begins.

Writes are told apart by their tags, never by what they wrote. Versions give the order, so linearizability
costs O(1) an operation: no result may be older than what had ended before the operation began.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.consensus.register import Change, Conflicting, Found, Outcome, Read, Value, Written
from tests.sim.schedule import Broken


@dataclass(slots=True)
class KeyHistory:
    """All that was ever seen of one key."""

    key: str
    ended: int = 0  # the highest version of any operation that ended
    tags: dict[int, str] = field(default_factory=dict)
    data: dict[int, bytes | None] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def saw(self, value: Value) -> None:
        if not value.version:
            return
        for past, tag in enumerate(value.tags):
            version = value.version - past
            if self.tags.setdefault(version, tag) != tag:
                raise Broken(f"{self.key}: version {version} was written by {tag} and {self.tags[version]}")
            if self.versions.setdefault(tag, version) != version:
                raise Broken(f"{self.key}: {tag} took effect twice")
            if tag in self.failed:
                raise Broken(f"{self.key}: {tag} was reported failed and took effect")
        if self.data.setdefault(value.version, value.data) != value.data:
            raise Broken(f"{self.key}: version {value.version} has two values")

    def end(self, ended_before: int, change: Change, outcome: Outcome) -> None:
        """`ended_before`: what had ended when this operation began."""
        if isinstance(outcome, Written):
            assert not isinstance(change, Read)
            seen = outcome.version
            if seen != change.expected + 1:
                raise Broken(f"{self.key}: {change.tag} at {change.expected} became version {seen}")
            self.saw(Value(seen, change.data, (change.tag,)))
            ended_before += 1  # another had ended: then this version is not its
        else:
            seen = outcome.value.version if isinstance(outcome, Found) else outcome.current.version
            self.saw(outcome.value if isinstance(outcome, Found) else outcome.current)
            if isinstance(outcome, Conflicting) and not isinstance(change, Read):
                self._failed(change.tag, change.expected, seen)
        if seen < ended_before:
            raise Broken(f"{self.key}: version {seen} was answered after {ended_before - 1} had ended")
        self.ended = max(self.ended, seen)

    def _failed(self, tag: str, expected: int, seen: int) -> None:
        if tag in self.versions:
            raise Broken(f"{self.key}: {tag} took effect and was reported failed")
        if seen == expected:
            raise Broken(f"{self.key}: {tag} was refused at the version that it expected")
        self.failed.add(tag)


@dataclass(slots=True)
class Leaders:
    """Who led which term, and until when each console may believe that it leads."""

    terms: dict[int, str] = field(default_factory=dict)
    until_s: dict[str, float] = field(default_factory=dict)

    def leads(self, holder: str, term: int, now_s: float, until_s: float) -> None:
        if self.terms.setdefault(term, holder) != holder:
            raise Broken(f"term {term} has two leaders: {self.terms[term]} and {holder}")
        for other, others_s in self.until_s.items():
            if other != holder and others_s > now_s:
                raise Broken(f"{holder} leads term {term} while {other} may act for {others_s - now_s:.3f} s")
        if term < max(self.terms):
            raise Broken(f"{holder} leads term {term} after term {max(self.terms)}")
        self.until_s[holder] = until_s

    def stops(self, holder: str) -> None:
        self.until_s.pop(holder, None)
