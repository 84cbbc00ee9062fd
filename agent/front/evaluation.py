"""A filter over a range of slots, by columns alone: which match, and which might."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
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
    """One filter, one look, one range of slots. `editing`: the page said so before it began.

    However many conditions there are, only a few answers are in memory at once: one is a byte a slot.
    """

    def __init__(
        self,
        look: Look,
        columns: Mapping[Path, ColumnReader],
        low: int,
        high: int,
        *,
        editing: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check`, asked before each condition, raises when there is no time left."""
        self._look, self._columns, self._check = look, columns, check
        self._low, self._high, self._editing = low, high, editing

    def filter(self, where: Filter) -> Answer:
        """All clauses hold. The answers of conditions are not changed in place: they may be shared."""
        clauses: list[Iterable[Answer]] = [
            (self._condition(c) for c in where.must),
            (_not(self._condition(c)) for c in where.must_not),
        ]
        if where.should:
            clauses.append((_combined((self._condition(c) for c in where.should), np.logical_or),))
        if where.min_should is not None:
            clauses.append((self._min_should(where.min_should),))
        if where.restricts_nothing:
            return self._all(True)
        return _combined(chain.from_iterable(clauses), np.logical_and)

    def _min_should(self, least: MinShould) -> Answer:
        held = np.zeros((2, self._high - self._low), np.uint32)
        for condition in least.conditions:
            answer = self._condition(condition)
            held[0] += answer.yes
            held[1] += answer.maybe
        return Answer(held[0] >= least.min_count, held[1] >= least.min_count)

    def _condition(self, condition: Condition) -> Answer:
        self._check()
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


def _not(answer: Answer) -> Answer:
    yes = ~answer.maybe
    return Answer(yes, yes if answer.yes is answer.maybe else ~answer.yes)


def _combined(answers: Iterable[Answer], by: np.ufunc) -> Answer:
    """At least one answer. The first is not ours to write to; what comes of the second and it is."""
    given = iter(answers)
    yes, maybe = next(given)
    ours = False
    for answer in given:
        certain = yes is maybe and answer.yes is answer.maybe
        if not certain:
            spare = maybe if ours and maybe is not yes else None
            maybe = by(maybe, answer.maybe, out=spare)
        yes = by(yes, answer.yes, out=yes if ours else None)
        if certain:
            maybe = yes
        ours = True
    return Answer(yes, maybe)
