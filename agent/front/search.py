"""Handlers that read points: queries, scroll, count, facets, matrices, retrieval.

A plain vector search is answered on the loop, together with those that arrived in the same turn of
it: a hand-over to a thread costs a third of the search. Whatever may take long goes to a thread.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from agent.front.access import Role
from agent.front.places import Terms
from agent.front.queries.answers import Points, Record, ScoredPoint, encoded
from agent.front.queries.collection import Collection as Look
from agent.front.queries.deadline import Deadline
from agent.front.queries.reads import Reads
from agent.front.reading import Reading, again
from agent.front.routes import AtOnce, Handler, Reply, Request, Route, flag, served_with
from agent.front.serving import Served, Serving
from agent.metrics import Histogram, Metrics
from agent.rates import Bucket
from core.api import old_searches
from core.api import queries as bodies
from core.api import reads as api_reads
from core.api import searches as api
from core.api.checks import Limits
from core.api.decode import decode
from core.api.strict import (
    check_batch,
    check_filter,
    check_limit,
    check_search,
    check_timeout,
    strict_mode,
)
from core.consistency import read_level
from core.errors import DeadlineExceeded, InvariantBroken, NotFound, Overloaded, ShoalError
from core.hashing import id_key, point_id
from core.replication.effects import Consistency

T = TypeVar("T")
THREADS = 2
WAITING_THREADS = 32
"""For reads of collections that are not all here: they mostly wait for other nodes."""
QUEUE_MAX = 256
"""Long reads that run or wait for a thread; more are refused."""
TURN_MAX = 64
"""Plain searches that one turn of the loop answers."""
SHORT_LIMIT_MAX = 200
"""A plain search for more is not short."""
SHORT_TAIL_MAX = 16_000
"""Slots that a short search may scan exactly, in all shards together."""
_encode = msgspec.json.Encoder().encode
_NOT_SHORT = (b'"filter"', b'"prefetch"')
"""What a long search mostly says near an end of its body: then it need not be parsed twice."""
_NEAR_BYTES = 256
_Waiting = tuple[api.Search, asyncio.Future[list[ScoredPoint]], float]


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of the calls that make one search; `before` and `after` stand around its points."""

    shape: type[Any]
    parse: Callable[..., api.Search]
    before: bytes = b""
    after: bytes = b""


class Search:
    """Everything under /collections/{c} that reads points."""

    def __init__(self, serving: Serving, metrics: Metrics, *, fronts: int) -> None:
        self._serving, self._metrics, self._fronts = serving, metrics, fronts
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="read")
        self._waiting_threads = ThreadPoolExecutor(WAITING_THREADS, thread_name_prefix="gather")
        self._queued = 0
        self._queue_gauge = metrics.gauge("shoal_reads_in_threads")
        self._turn: dict[str, list[_Waiting]] = {}
        self._rates: dict[str, Bucket] = {}
        self._histograms: dict[str, Histogram] = {}
        self._random = random.Random()

    def close(self) -> None:
        for threads in (self._threads, self._waiting_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def routes(self) -> list[Route]:
        one, points = "/collections/*", "/collections/*/points"
        table: list[tuple[str, str, Handler]] = [
            (
                "POST",
                f"{points}/query/batch",
                self._batch(bodies.QueryBatchBody, api.parse_query_batch, wrap=True),
            ),
            ("POST", f"{points}/query/groups", self._groups(bodies.QueryGroupsBody, api.parse_query_groups)),
            (
                "POST",
                f"{points}/search/batch",
                self._batch(bodies.SearchBatchBody, old_searches.parse_search_batch, wrap=False),
            ),
            (
                "POST",
                f"{points}/search/groups",
                self._groups(bodies.SearchGroupsBody, old_searches.parse_search_groups),
            ),
            (
                "POST",
                f"{points}/recommend/batch",
                self._batch(bodies.RecommendBatchBody, old_searches.parse_recommend_batch, wrap=False),
            ),
            ("POST", points, self.retrieve),
            ("GET", f"{points}/*", self.retrieve_one),
            ("POST", f"{points}/scroll", self.scroll),
            ("POST", f"{points}/count", self.count),
            ("POST", f"{one}/facet", self.facet),
            ("POST", f"{points}/search/matrix/pairs", self.matrix_pairs),
            ("POST", f"{points}/search/matrix/offsets", self.matrix_offsets),
        ]
        kinds = [
            ("query", _Kind(bodies.QueryBody, api.parse_query, b'{"points":', b"}")),
            ("search", _Kind(bodies.SearchBody, old_searches.parse_search)),
            ("recommend", _Kind(bodies.RecommendBody, old_searches.parse_recommend)),
        ]
        return [
            *(Route(method, path, Role.READ, self._timed(handler)) for method, path, handler in table),
            *(
                Route(
                    "POST",
                    f"{points}/{name}",
                    Role.READ,
                    self._timed(self._one(kind)),
                    at_once=self._at_once(kind),
                )
                for name, kind in kinds
            ),
        ]

    # -- queries

    def _one(self, kind: _Kind) -> Handler:
        async def search(request: Request) -> Reply:
            served = await self._serving.collection(request.parameters[0])
            parsed = kind.parse(decode(kind.shape, request.body), served.info.params.vectors, self._limits)
            reply = await self._search(served, parsed, request)
            reply.result = kind.before + reply.result + kind.after
            return reply

        return search

    def _at_once(self, kind: _Kind) -> AtOnce:
        """The same for searches that are short, without a turn of the loop."""

        def search(request: Request) -> Reply | None:
            near = request.body[:_NEAR_BYTES] + request.body[-_NEAR_BYTES:]
            if any(word in near for word in _NOT_SHORT) or not self._serving.is_current:
                return None
            began = time.perf_counter()
            try:
                served = self._serving.known(request.parameters[0])
                body = decode(kind.shape, request.body)
                parsed = kind.parse(body, served.info.params.vectors, self._limits)
                if not self._is_short(served, parsed):
                    return None
                self._admit_search(served, parsed, request)
                level = self._level(served, request)
                if not self._is_read_here(served, level):
                    return None
                found = again(lambda: self._look_for(served, [parsed], request.deadline))[0]
            except ShoalError as error:
                self._metrics.counter("shoal_search_errors_total", code=error.code).add()
                raise
            self._histogram(request.parameters[0]).observe(time.perf_counter() - began)
            return Reply(kind.before + _encode(found) + kind.after, headers=_told(request, level))

        return search

    def _batch(self, shape: type[Any], parse: Callable[..., Any], *, wrap: bool) -> Handler:
        async def batch(request: Request) -> Reply:
            served = await self._serving.collection(request.parameters[0])
            given = parse(decode(shape, request.body), served.info.params.vectors, self._limits)
            strict = strict_mode(served.info.params)
            check_batch(strict, len(given))
            for search in given:
                check_search(strict, search, served.info.indexes)
            self._admit(served, request, max(1, len(given)))

            def read(reads: Reads) -> list[Points] | list[list[ScoredPoint]]:
                found = reads.query_batch(given)
                return [Points(points) for points in found] if wrap else found

            return await self._answered(served, request, read)

        return batch

    def _groups(self, shape: type[Any], parse: Callable[..., api.Groups]) -> Handler:
        async def groups(request: Request) -> Reply:
            served = await self._serving.collection(request.parameters[0])
            parsed = parse(decode(shape, request.body), served.info.params.vectors, self._limits)
            check_search(strict_mode(served.info.params), parsed, served.info.indexes)
            self._admit(served, request)
            return await self._answered(served, request, lambda reads: reads.groups(parsed))

        return groups

    async def _search(self, served: Served, search: api.Search, request: Request) -> Reply:
        """The encoded list of points."""
        self._admit_search(served, search, request)
        level = self._level(served, request)
        if self._is_short(served, search) and self._is_read_here(served, level):
            found = await self._in_turn(served, search, request)
            return Reply(_encode(found), headers=_told(request, level))
        return await self._answered(served, request, lambda reads: reads.query(search))

    @staticmethod
    def _is_short(served: Served, search: api.Search) -> bool:
        """One vector search over graphs and a bounded tail, all of it here, whose answer is small."""
        if not served.is_here:
            return False
        node = search.node
        if node.prefetch or node.exact or node.filter is not None or node.lookup is not None:
            return False
        if not isinstance(node.query, api.Nearest) or isinstance(node.query.example, bytes):
            return False
        if node.limit + node.offset > SHORT_LIMIT_MAX or (node.ef or 0) > SHORT_LIMIT_MAX * 4:
            return False
        vector = served.vectors.get(node.using)
        if vector is None:
            return False
        return sum(shard.scanned(vector.v) for shard in served.shards) <= SHORT_TAIL_MAX

    def _in_turn(
        self, served: Served, search: api.Search, request: Request
    ) -> asyncio.Future[list[ScoredPoint]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[ScoredPoint]] = loop.create_future()
        waiting = self._turn.setdefault(served.name, [])
        waiting.append((search, future, request.deadline))
        if len(waiting) == 1:
            loop.call_soon(self._flush, served)
        return future

    def _flush(self, served: Served) -> None:
        """Search for all that arrived since the last turn of the loop, in one look."""
        waiting = [one for one in self._turn.pop(served.name, []) if not one[1].done()]
        if len(waiting) > TURN_MAX:  # the loop must not stand still for all of them
            self._turn[served.name] = waiting[TURN_MAX:]
            waiting = waiting[:TURN_MAX]
            asyncio.get_running_loop().call_soon(self._flush, served)
        if waiting:
            self._search_now(served, waiting)

    def _search_now(self, served: Served, waiting: list[_Waiting]) -> None:
        try:
            searches = [search for search, _, _ in waiting]
            last = max(deadline for _, _, deadline in waiting)
            answers = again(lambda: self._look_for(served, searches, last))
        except Exception as problem:  # noqa: BLE001 - handed to the one whose search failed
            if len(waiting) == 1:
                waiting[0][1].set_exception(problem)
                return
            for one in waiting:  # one of them may be at fault: each for itself
                self._search_now(served, [one])
            return
        for (_, future, _), answer in zip(waiting, answers, strict=True):
            future.set_result(answer)

    def _look_for(
        self, served: Served, searches: list[api.Search], deadline: float
    ) -> list[list[ScoredPoint]]:
        others = self._serving.others
        began_s = time.monotonic() if others is not None else 0.0
        with served.look() as look:
            found = self._reads(look, deadline, _never_named).query_batch(searches)
        if others is not None:
            others.served_here(time.monotonic() - began_s)
        return found

    # -- other reads

    async def retrieve(self, request: Request) -> Reply:
        served = await self._serving.collection(request.parameters[0])
        parsed = api_reads.parse_retrieve(decode(api_reads.RetrieveBody, request.body), self._limits)
        self._admit(served, request, max(1, len(parsed.keys)))
        return await self._answered(served, request, lambda reads: reads.retrieve(parsed))

    async def retrieve_one(self, request: Request) -> Reply:
        name, text = request.parameters
        served = await self._serving.collection(name)
        # Python refuses to read numbers of thousands of digits, by a ValueError; no id has over 20.
        key = id_key(int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else text)
        self._admit(served, request)
        parsed = api_reads.parse_retrieve(
            api_reads.RetrieveBody(ids=[point_id(key)], with_payload=True, with_vector=True), self._limits
        )

        def read(reads: Reads) -> Record:
            found = reads.retrieve(parsed)
            if not found:
                raise NotFound(f"Not found: Point with id {point_id(key)} does not exist!")
            return found[0]

        return await self._answered(served, request, read)

    async def scroll(self, request: Request) -> Reply:
        served = await self._serving.collection(request.parameters[0])
        parsed = api_reads.parse_scroll(decode(api_reads.ScrollBody, request.body), self._limits)
        check_limit(strict_mode(served.info.params), parsed.limit)
        check_filter(strict_mode(served.info.params), parsed.filter, served.info.indexes)
        self._admit(served, request)
        return await self._answered(served, request, lambda reads: reads.scroll(parsed))

    async def count(self, request: Request) -> Reply:
        served = await self._serving.collection(request.parameters[0])
        parsed = api_reads.parse_count(decode(api_reads.CountBody, request.body), self._limits)
        check_filter(strict_mode(served.info.params), parsed.filter, served.info.indexes)
        self._admit(served, request)
        return await self._answered(served, request, lambda reads: reads.count(parsed))

    async def facet(self, request: Request) -> Reply:
        served = await self._serving.collection(request.parameters[0])
        parsed = api_reads.parse_facet(decode(api_reads.FacetBody, request.body), self._limits)
        check_limit(strict_mode(served.info.params), parsed.limit)
        check_filter(strict_mode(served.info.params), parsed.filter, served.info.indexes)
        self._admit(served, request)
        return await self._answered(served, request, lambda reads: reads.facet(parsed))

    async def matrix_pairs(self, request: Request) -> Reply:
        served, parsed = await self._matrix(request)
        return await self._answered(served, request, lambda reads: reads.matrix_pairs(parsed))

    async def matrix_offsets(self, request: Request) -> Reply:
        served, parsed = await self._matrix(request)
        return await self._answered(served, request, lambda reads: reads.matrix_offsets(parsed))

    async def _matrix(self, request: Request) -> tuple[Served, api_reads.Matrix]:
        served = await self._serving.collection(request.parameters[0])
        body = decode(api_reads.MatrixBody, request.body)
        parsed = api_reads.parse_matrix(body, served.info.params.vectors, self._limits)
        check_filter(strict_mode(served.info.params), parsed.filter, served.info.indexes)
        self._admit(served, request)
        return served, parsed

    # -- how reads run

    @property
    def _limits(self) -> Limits:
        return self._serving.limits

    def _admit(self, served: Served, request: Request, cost: int = 1) -> None:
        """Checks that all reads share. Raises BadRequest, RateLimited."""
        strict = strict_mode(served.info.params)
        if strict is None:
            return
        if "timeout" in request.query:
            check_timeout(strict, float(request.query["timeout"]))
        if strict.read_rate_limit is not None:
            now_s = asyncio.get_running_loop().time()
            # Fronts count each for itself: together they let the limit pass.
            share = max(1, strict.read_rate_limit // self._fronts)
            bucket = self._rates.get(served.name)
            if bucket is None or bucket.per_minute != share:
                bucket = self._rates[served.name] = Bucket(share, now_s)
            bucket.take(cost, now_s, "Read")

    @staticmethod
    def _level(served: Served, request: Request) -> Consistency:
        """What the read has to see. Raises BadRequest."""
        asked = request.query.get("consistency")
        return Consistency.EVENTUAL if asked is None else read_level(asked, served.replicas)

    def _is_read_here(self, served: Served, level: Consistency) -> bool:
        """Whether no other node needs to be asked, or is better asked."""
        others = self._serving.others
        if others is None:
            return True
        return level is Consistency.EVENTUAL and others.places.all_here(served.held)

    def _admit_search(self, served: Served, search: api.Search, request: Request) -> None:
        check_search(strict_mode(served.info.params), search, served.info.indexes)
        self._admit(served, request)

    async def _answered(self, served: Served, request: Request, read: Callable[[Reads], object]) -> Reply:
        """Read and encode in a thread: an answer of megabytes takes longer than the loop may stand."""
        level = self._level(served, request)
        terms = Terms(request.deadline, level, flag(request.query, "allow_partial"))
        reading = Reading(self._serving.others, terms)
        result = await self._in_thread(served, request, reading, lambda reads: encoded(read(reads)))
        return Reply(result, headers=_told(request, level), partial=reading.partial())

    async def _in_thread(
        self, served: Served, request: Request, reading: Reading, read: Callable[[Reads], T]
    ) -> T:
        """Run a read that may take long. Raises Overloaded when too many wait."""
        request.left_s()
        if self._queued >= QUEUE_MAX:
            raise Overloaded(f"{QUEUE_MAX} long reads are under way; retry later")
        self._queued += 1
        self._queue_gauge.set(self._queued)

        def look_and_read(stack: ExitStack) -> T:
            def look(served: Served) -> Look:
                return reading.look(served, stack)

            return read(self._reads(look(served), request.deadline, look))

        try:
            # It may wait for a thread for longer than its client does; in one it looks at the clock itself.
            async with asyncio.timeout_at(request.deadline):
                is_here = await reading.prepare(served)
                threads = self._threads if is_here else self._waiting_threads
                began_s = time.monotonic()
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(threads, reading.run, look_and_read)
                if is_here and self._serving.others is not None:
                    self._serving.others.served_here(time.monotonic() - began_s)
                return found
        except TimeoutError:
            raise DeadlineExceeded(
                "the request's timeout passed before it was answered; give it more by ?timeout=seconds"
            ) from None
        finally:
            self._queued -= 1
            self._queue_gauge.set(self._queued)

    def _reads(self, look: Look, deadline: float, look_at: Callable[[Served], Look]) -> Reads:
        until = Deadline(deadline, time.monotonic)  # as loop time, and may be read from a thread

        def heeding(look: Look) -> Look:
            for source in look.sources:
                source.heed(until)
            return look

        def named(name: str) -> Look:
            return heeding(look_at(self._serving.known(name)))

        return Reads(heeding(look), named, until, lambda: self._random.getrandbits(63))

    def _histogram(self, name: str) -> Histogram:
        label = self._serving.label(name)
        found = self._histograms.get(label)
        if found is None:
            found = self._histograms[label] = self._metrics.histogram(
                "shoal_search_seconds", collection=label
            )
        return found

    def _timed(self, handler: Handler) -> Handler:
        async def timed(request: Request) -> Reply:
            began = time.perf_counter()
            try:
                return await handler(request)
            except ShoalError as error:
                self._metrics.counter("shoal_search_errors_total", code=error.code).add()
                raise
            finally:
                self._histogram(request.parameters[0]).observe(time.perf_counter() - began)

        return timed


def _told(request: Request, level: Consistency) -> dict[str, str] | None:
    return served_with(level) if "consistency" in request.query else None


def _never_named(served: Served) -> Look:
    raise InvariantBroken("a short search looks at one collection only")
