"""Whether a coordinator leads the cluster at this moment."""

from __future__ import annotations

import asyncio

from console.peers import Links
from console.state_client import StateClient
from core.config import ClusterConfig
from core.config_values import host_port
from core.consensus.lease import LEADER_KEY, NOBODY, decode_lease
from core.errors import ShoalError
from net.trust import trust_of


async def is_led(config: ClusterConfig, *, within_s: float) -> bool:
    """Waits for a lease that is renewed: one that only lies there may be of a console that was killed."""
    links = Links("up", trust_of(config), {node.id: host_port(node.peer_address) for node in config.nodes})
    state = StateClient(links.caller, lambda: links.nodes)
    try:
        async with asyncio.timeout(within_s):
            seen = await state.read(LEADER_KEY, timeout_s=within_s)
            while (later := await state.watch(LEADER_KEY, seen.version, timeout_s=within_s)) is not None:
                if later.value is not None and decode_lease(later.value).holder != NOBODY:
                    return True
                seen = later
    except (TimeoutError, ShoalError):
        return False  # nobody answers yet, or nobody leads: to the caller it is the same
    finally:
        await links.close()
    return False
