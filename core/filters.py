"""The payload filter language: its conditions as values, and an exact test of one point."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from core import tokens
from core.datetimes import parse_datetime
from core.geo import GeoPoint, Ring, distance_m, geo_point, in_box, in_polygon
from core.hashing import IdKey
from core.payload import Path, Payload, getter, values_at
from core.siphash import slice_of
from core.tokens import TextOptions

Scalar = str | int | bool
"""What `match` compares. A bool is never an integer here, and an integer never a float."""


@dataclass(frozen=True, slots=True)
class MatchValue:
    path: Path
    value: Scalar

    def __eq__(self, other: object) -> bool:
        # Python calls 1 and True equal; a filter kept for one must not answer for the other.
        return (
            isinstance(other, MatchValue)
            and self.path == other.path
            and type(self.value) is type(other.value)
            and self.value == other.value
        )

    def __hash__(self) -> int:
        return hash((self.path, self.value))


@dataclass(frozen=True, slots=True)
class MatchAny:
    path: Path
    values: frozenset[str] | frozenset[int]


@dataclass(frozen=True, slots=True)
class MatchExcept:
    """Some value is neither null nor one of these."""

    path: Path
    values: frozenset[str] | frozenset[int]


@dataclass(frozen=True, slots=True)
class MatchText:
    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class MatchTextAny:
    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class MatchPhrase:
    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class MatchPrefix:
    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class NumberRange:
    path: Path
    lt: float | None = None
    lte: float | None = None
    gt: float | None = None
    gte: float | None = None


@dataclass(frozen=True, slots=True)
class DatetimeRange:
    """Bounds in microseconds since 1970 UTC."""

    path: Path
    lt: int | None = None
    lte: int | None = None
    gt: int | None = None
    gte: int | None = None


@dataclass(frozen=True, slots=True)
class GeoRadius:
    path: Path
    center: GeoPoint
    radius_m: float


@dataclass(frozen=True, slots=True)
class GeoBox:
    path: Path
    top_left: GeoPoint
    bottom_right: GeoPoint


@dataclass(frozen=True, slots=True)
class GeoPolygon:
    path: Path
    exterior: Ring
    holes: tuple[Ring, ...] = ()


@dataclass(frozen=True, slots=True)
class ValuesCount:
    path: Path
    lt: int | None = None
    lte: int | None = None
    gt: int | None = None
    gte: int | None = None


@dataclass(frozen=True, slots=True)
class IsEmpty:
    path: Path


@dataclass(frozen=True, slots=True)
class IsNull:
    path: Path


@dataclass(frozen=True, slots=True)
class HasId:
    keys: frozenset[IdKey]


@dataclass(frozen=True, slots=True)
class HasVector:
    name: str


@dataclass(frozen=True, slots=True)
class Slice:
    total: int
    index: int


@dataclass(frozen=True, slots=True)
class Nested:
    """One object of the list at the path meets all of the filter, whose paths start at that object."""

    path: Path
    filter: Filter


@dataclass(frozen=True, slots=True)
class MinShould:
    conditions: tuple[Condition, ...]
    min_count: int


@dataclass(frozen=True, slots=True)
class Filter:
    """All clauses hold. An empty clause restricts nothing."""

    must: tuple[Condition, ...] = ()
    should: tuple[Condition, ...] = ()
    must_not: tuple[Condition, ...] = ()
    min_should: MinShould | None = None

    @property
    def restricts_nothing(self) -> bool:
        return not (self.must or self.should or self.must_not or self.min_should)


FieldCondition = (
    MatchValue | MatchAny | MatchExcept | MatchText | MatchTextAny | MatchPhrase | MatchPrefix
    | NumberRange | DatetimeRange | GeoRadius | GeoBox | GeoPolygon | ValuesCount | IsEmpty | IsNull
)  # fmt: skip
Condition = FieldCondition | HasId | HasVector | Slice | Nested | Filter

Test = Callable[[bytes, Payload, Container[str]], bool]
"""(id key, payload, names of the vectors it has) → does the point match?"""

ValueTest = Callable[[Any], bool]
TextIndexes = Mapping[Path, TextOptions]
NO_TEXT_INDEXES: TextIndexes = {}
JOIN_CONDITIONS_MIN = 8
"""Of so many alternatives those that can be are joined; fewer are as fast as they are."""
_IN_NESTED = b""  # stands for the id inside `nested`, where no id condition holds
_ROOT = Path(())


def compile_filter(filter_: Filter, text_indexes: TextIndexes = NO_TEXT_INDEXES) -> Test:
    """The filter as one function, to test many points with.

    A text index changes what `text`, `text_any` and `phrase` mean on its path: tokens instead of characters.
    """
    return _compile_filter(joined(filter_), text_indexes, _ROOT)


def joined(filter_: Filter) -> Filter:
    """The same filter, where alternatives that compare one path with values are one condition.

    Clients write thousands of ids or values as thousands of conditions; looked at one by one they cost
    as many looks at each point.
    """
    if max(len(filter_.should), len(filter_.must_not)) < JOIN_CONDITIONS_MIN and not any(
        isinstance(c, Filter) for c in conditions_of(filter_)
    ):
        return filter_
    least = filter_.min_should
    return Filter(
        must=_joined_each(filter_.must),
        should=_alternatives(_joined_each(filter_.should)),
        must_not=_alternatives(_joined_each(filter_.must_not)),
        min_should=None if least is None else MinShould(_joined_each(least.conditions), least.min_count),
    )


def _joined_each(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    return tuple([joined(c) if isinstance(c, Filter) else c for c in conditions])


def _alternatives(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Any of them holds if, and only if, any of the answer does."""
    if len(conditions) < JOIN_CONDITIONS_MIN:
        return conditions
    texts: dict[Path, set[str]] = {}
    numbers: dict[Path, set[int]] = {}
    keys: set[IdKey] | None = None
    others: dict[Condition, None] = {}
    for condition in conditions:
        match condition:
            case MatchValue(path, str() as text):
                texts.setdefault(path, set()).add(text)
            case MatchValue(path, int() as number) if type(number) is int:
                numbers.setdefault(path, set()).add(number)
            case HasId(some):
                keys = set() if keys is None else keys
                keys |= some
            case _:
                others[condition] = None
    return (
        *(MatchAny(path, frozenset(values)) for path, values in texts.items()),
        *(MatchAny(path, frozenset(values)) for path, values in numbers.items()),
        *((HasId(frozenset(keys)),) if keys is not None else ()),
        *others,
    )


def matches(filter_: Filter, key: bytes, payload: Payload, has_vectors: Container[str] = ()) -> bool:
    """Does this one point match?"""
    return compile_filter(filter_)(key, payload, has_vectors)


def conditions_in(filter_: Filter) -> Iterator[Condition]:
    """Every condition, at any depth, filters and nested ones included."""
    for condition in conditions_of(filter_):
        yield condition
        if isinstance(condition, Filter):
            yield from conditions_in(condition)
        elif isinstance(condition, Nested):
            yield from conditions_in(condition.filter)


def conditions_of(filter_: Filter) -> tuple[Condition, ...]:
    """The conditions of all clauses, at this level alone."""
    counted = filter_.min_should.conditions if filter_.min_should is not None else ()
    return (*filter_.must, *filter_.should, *filter_.must_not, *counted)


def paths_in(filter_: Filter, at: Path = _ROOT) -> Iterator[Path]:
    """The payload paths that the filter looks at, those inside `nested` in full."""
    for condition in conditions_of(filter_):
        if isinstance(condition, Filter):
            yield from paths_in(condition, at)
        elif isinstance(condition, Nested):
            yield from paths_in(condition.filter, Path((*at.steps, *_elements(condition.path).steps)))
        elif not isinstance(condition, HasId | HasVector | Slice):
            yield Path((*at.steps, *condition.path.steps))


def compile_condition(condition: Condition, text_indexes: TextIndexes = NO_TEXT_INDEXES) -> Test:
    return _compile(condition, text_indexes, _ROOT)


def _compile_filter(filter_: Filter, texts: TextIndexes, at: Path) -> Test:
    must = [_compile(c, texts, at) for c in filter_.must]
    must_not = [_compile(c, texts, at) for c in filter_.must_not]
    should = [_compile(c, texts, at) for c in filter_.should]
    least = filter_.min_should
    counted = [_compile(c, texts, at) for c in least.conditions] if least else []
    if len(must) == 1 and not (must_not or should or least):
        return must[0]

    def test(key: bytes, payload: Payload, has: Container[str]) -> bool:
        for holds in must:
            if not holds(key, payload, has):
                return False
        for holds in must_not:
            if holds(key, payload, has):
                return False
        if should and not any(holds(key, payload, has) for holds in should):
            return False
        if least is None:
            return True
        return sum(holds(key, payload, has) for holds in counted) >= least.min_count

    return test


def _compile(condition: Condition, texts: TextIndexes, at: Path) -> Test:
    match condition:
        case Filter():
            return _compile_filter(condition, texts, at)
        case HasId(keys):
            return lambda key, payload, has: key in keys
        case HasVector(name):
            return lambda key, payload, has: name in has
        case Slice(total, index):
            return lambda key, payload, has: key != _IN_NESTED and slice_of(key, total) == index
        case Nested():
            return _compile_nested(condition, texts, at)
        case IsEmpty(path):
            return lambda key, payload, has: all(v is None or v == [] for v in values_at(payload, path))
        case IsNull(path):
            return lambda key, payload, has: any(v is None for v in values_at(payload, path))
        case ValuesCount(path):
            return _compile_count(condition)
        case _:
            return _compile_any_value(condition.path, value_test(condition, texts, at))


def _compile_any_value(path: Path, holds: ValueTest) -> Test:
    get = getter(path)

    def test(key: bytes, payload: Payload, has: Container[str]) -> bool:
        for value in get(payload):  # noqa: SIM110 (a generator costs as much as the test)
            if holds(value):
                return True
        return False

    return test


def _compile_nested(condition: Nested, texts: TextIndexes, at: Path) -> Test:
    path = _elements(condition.path)
    inner = _compile_filter(joined(condition.filter), texts, Path((*at.steps, *path.steps)))

    def test(key: bytes, payload: Payload, has: Container[str]) -> bool:
        return any(
            inner(_IN_NESTED, element, ())
            for element in values_at(payload, path)
            if isinstance(element, dict)
        )

    return test


def _elements(path: Path) -> Path:
    """A nested `k` means `k[]`: the elements of the lists at the path, whether it says so or not."""
    return path if path.steps[-1] is None else Path((*path.steps, None))


def _compile_count(condition: ValuesCount) -> Test:
    within = _bounds(condition.lt, condition.lte, condition.gt, condition.gte)
    path = condition.path

    def test(key: bytes, payload: Payload, has: Container[str]) -> bool:
        values = values_at(payload, path)
        if not values:
            return within(0)  # a missing key has no values
        return any(within(_count(value)) for value in values)

    return test


def _count(value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    return 0 if value is None else 1


def value_test(
    condition: FieldCondition, texts: TextIndexes = NO_TEXT_INDEXES, at: Path = _ROOT
) -> ValueTest:
    """The condition as a test of one value (an element, where the payload has a list)."""
    match condition:
        case MatchValue(_, value):
            kind = type(value)
            return lambda v: type(v) is kind and v == value
        case MatchAny(_, values):
            return lambda v: type(v) in (str, int) and v in values
        case MatchExcept(_, values):
            return lambda v: v is not None and not (type(v) in (str, int) and v in values)
        case NumberRange():
            within = _bounds(condition.lt, condition.lte, condition.gt, condition.gte)
            return lambda v: type(v) in (int, float) and within(v)
        case DatetimeRange():
            return partial(
                _datetime_within, _bounds(condition.lt, condition.lte, condition.gt, condition.gte)
            )
        case GeoRadius(_, center, radius_m):
            return partial(_geo, lambda p: distance_m(p, center) < radius_m)
        case GeoBox(_, top_left, bottom_right):
            return partial(_geo, lambda p: in_box(p, top_left, bottom_right))
        case GeoPolygon(_, exterior, holes):
            return partial(_geo, lambda p: in_polygon(p, exterior, holes))
        case MatchText() | MatchTextAny() | MatchPhrase() | MatchPrefix():
            holds = text_test(condition, texts.get(Path((*at.steps, *condition.path.steps))))
            return lambda v: type(v) is str and holds(v)
        case _:
            raise AssertionError(f"{condition} tests all values of a path, not one")


def text_test(
    condition: MatchText | MatchTextAny | MatchPhrase | MatchPrefix, index: TextOptions | None
) -> tokens.TextTest:
    text = condition.text
    match condition:
        case MatchPrefix():
            return tokens.starts_with(text)
        case MatchTextAny():
            return tokens.contains_any_word(text) if index is None else tokens.any_of(text, index)
        case MatchPhrase() if index is not None:
            return tokens.phrase_of(text, index)
        case MatchText() if index is not None:
            return tokens.all_of(text, index)
        case _:
            return tokens.contains(text)


def _bounds(
    lt: float | None, lte: float | None, gt: float | None, gte: float | None
) -> Callable[[float], bool]:
    """One function for the bounds that are given."""

    def within(x: float) -> bool:
        return (
            (lt is None or x < lt)
            and (lte is None or x <= lte)
            and (gt is None or x > gt)
            and (gte is None or x >= gte)
        )

    return within


def _datetime_within(within: Callable[[float], bool], value: Any) -> bool:
    if type(value) is not str:
        return False
    micros = parse_datetime(value)
    return micros is not None and within(micros)


def _geo(holds: Callable[[GeoPoint], bool], value: Any) -> bool:
    point = geo_point(value)
    return point is not None and holds(point)
