"""Links of a console with stores: one kept connection to each, made when needed, watched for its end."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping

from core.errors import Conflict, Unavailable
from net.frames import Caller, Framing
from net.peer_link import GREETING_S, Identity, Proved, Trust, dial

Address = tuple[str, int]


class Links:
    """Callers by node. `on_lost` hears of each connection that ended by itself, in the instant it did.

    `dialled`: whom to dial in a node's place; tests put proxies there.
    """

    def __init__(
        self,
        name: str,
        trust: Trust,
        addresses: Mapping[str, Address],
        *,
        source: str | None = None,
        dialled: Callable[[str, Address], Address] = lambda node, address: address,
    ) -> None:
        self._name, self._trust, self._source = name, trust, source
        self._dialled = dialled
        self._addresses = dict(addresses)
        self._links: dict[str, _Link] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.cluster = ""
        """Its uuid, once it is known: nodes of another one then refuse this console."""
        self.on_lost: Callable[[str], None] = lambda node: None

    @property
    def nodes(self) -> list[str]:
        """All that have an address, in the order in which they became known."""
        return list(self._addresses)

    def learn(self, addresses: Mapping[str, Address]) -> None:
        """The map says where its nodes are. A node that has moved is dialled anew."""
        for node, address in addresses.items():
            if self._addresses.get(node) not in (None, address):
                self.drop([node])
            self._addresses[node] = address

    def caller(self, node: str) -> Caller:
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = _Link(lambda link: self._dial(node, link), f"node {node}")
        return link.caller

    def drop(self, nodes: Iterable[str]) -> None:
        """Let go of connections that may be dead without a word: the next call opens new ones."""
        for node in nodes:
            link = self._links.pop(node, None)
            if link is not None:
                task = asyncio.create_task(link.caller.close(), name=f"links.drop.{node}")
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        self.drop(list(self._links))
        await asyncio.gather(*self._closing)

    async def _dial(self, node: str, link: _Link) -> _Watched:
        address = self._addresses.get(node)
        if address is None:
            raise Unavailable(f"nobody knows an address of node {node}")
        me = Identity(self._name, "console", self.cluster)
        async with asyncio.timeout(GREETING_S):
            framing = await dial(self._dialled(node, address), me, self._trust, source=self._source)
        if framing.peer.node != node:
            framing.close()
            raise Conflict(
                f"{address[0]}:{address[1]} is node {framing.peer.node}, not {node}: see its peer_address"
            )
        return _Watched(framing, lambda: self._lost(node, link))

    def _lost(self, node: str, link: _Link) -> None:
        if self._links.get(node) is link:  # else it was let go of here
            self.on_lost(node)


class _Link:
    """A caller that tells its dial for whom it dials: what ends later is told apart from what was let go."""

    def __init__(self, dial: Callable[[_Link], Awaitable[Framing]], whom: str) -> None:
        self.caller = Caller(lambda: dial(self), whom)


class _Watched:
    """A framing that tells of its end."""

    def __init__(self, framing: Proved, on_end: Callable[[], None]) -> None:
        self._framing, self._on_end = framing, on_end
        self.peer = framing.peer
        self.read, self.write, self.drain = framing.read, framing.write, framing.drain
        self.unsent_bytes, self.is_closing = framing.unsent_bytes, framing.is_closing

    def close(self) -> None:
        self._framing.close()
        self._on_end()


def was_refused(error: BaseException) -> bool:
    """Whether a connection was refused, by every address that the host's name has: nobody listens there."""
    cause = error.__cause__
    if isinstance(cause, ConnectionRefusedError):
        return True
    # asyncio's way to say that several addresses failed: only the text tells how.
    text = str(cause)
    return (
        isinstance(cause, OSError)
        and text.startswith("Multiple exceptions")
        and text.count("[Errno ") == text.count(f"[Errno {errno.ECONNREFUSED}]") > 0
    )
