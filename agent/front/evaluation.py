"""A filter over a range of slots, by columns alone: which match, and which might."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.columns.reader import ColumnReader
from agent.front.slices import slices_of
from core.filters import Condition, Filter, HasId, HasVector, MinShould, Nested, Slice
from core.payload import Path

if TYPE_CHECKING:
    from agent.front.view import Look

Bits = NDArray[np.bool_]


class Answer(NamedTuple):
    """Kleene's three values by slot: `yes` is certain, `maybe` includes `yes` and what is not known."""

    yes: Bits
    maybe: Bits


class Evaluation:
    """One filter, one look, one range of slots. `editing`: the page said so before it began."""

    def __init__(
        self, look: Look, columns: Mapping[Path, ColumnReader], low: int, high: int, *, editing: bool = False
    ) -> None:
        self._look, self._columns = look, columns
        self._low, self._high, self._editing = low, high, editing

    def filter(self, where: Filter) -> Answer:
        """All clauses hold. The answers of conditions are not changed in place: they may be shared."""
        clauses = [self._condition(c) for c in where.must]
        clauses += [_not(self._condition(c)) for c in where.must_not]
        if where.should:
            clauses.append(_any([self._condition(c) for c in where.should]))
        if where.min_should is not None:
            clauses.append(self._min_should(where.min_should))
        if not clauses:
            return self._all(True)
        return _all(clauses)

    def _min_should(self, least: MinShould) -> Answer:
        if not least.conditions:
            return self._all(least.min_count <= 0)
        answers = [self._condition(c) for c in least.conditions]
        return Answer(*(_at_least(least.min_count, [a[i] for a in answers]) for i in (0, 1)))

    def _condition(self, condition: Condition) -> Answer:
        match condition:
            case Filter():
                return self.filter(condition)
            case HasId(keys):
                return self._certain(self._look.has_ids(keys, self._low, self._high))
            case HasVector(name):
                return self._certain(self._look.has_named(name, self._low, self._high))
            case Slice(total, index):
                ids = self._look.reader.ids(self._high)[self._low :]
                return self._certain(slices_of(ids, total) == index)
            case Nested():
                return self._unknown()
            case _:
                column = self._columns.get(condition.path)
                if column is None:
                    return self._unknown()
                try:
                    return Answer(*column.mask(condition, self._low, self._high, editing=self._editing))
                except FileNotFoundError:  # the index has just been dropped
                    return self._unknown()

    def _all(self, value: bool) -> Answer:
        return self._certain(np.full(self._high - self._low, value))

    def _unknown(self) -> Answer:
        size = self._high - self._low
        return Answer(np.zeros(size, np.bool_), np.ones(size, np.bool_))

    @staticmethod
    def _certain(bits: Bits) -> Answer:
        return Answer(bits, bits)


def _at_least(count: int, conditions: Sequence[Bits]) -> Bits:
    held = np.zeros(len(conditions[0]), np.uint32)
    for bits in conditions:
        held += bits
    enough: Bits = held >= count
    return enough


def _not(answer: Answer) -> Answer:
    yes = ~answer.maybe
    return Answer(yes, yes if answer.yes is answer.maybe else ~answer.yes)


def _all(answers: Sequence[Answer]) -> Answer:
    return _combined(answers, np.logical_and)


def _any(answers: Sequence[Answer]) -> Answer:
    return _combined(answers, np.logical_or)


def _combined(answers: Sequence[Answer], by: np.ufunc) -> Answer:
    first, *rest = answers
    if not rest:
        return first
    certain = all(a.yes is a.maybe for a in answers)
    yes = by(first.yes, rest[0].yes)
    for answer in rest[1:]:
        by(yes, answer.yes, out=yes)
    if certain:
        return Answer(yes, yes)
    maybe = by(first.maybe, rest[0].maybe)
    for answer in rest[1:]:
        by(maybe, answer.maybe, out=maybe)
    return Answer(yes, maybe)
