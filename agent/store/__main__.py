"""The store's process: the one writer of a node."""

from __future__ import annotations

import os
import sys

import uvloop

from agent.child import enter
from agent.page import Page
from agent.store.process import Store
from core.errors import ShoalError
from net.logs import log_to


def main() -> None:
    spec = enter(sys.argv[1])
    agent = spec.config.agent
    log = log_to(sys.stderr, agent.log_format, agent.log_level).bind(node=spec.node.id, process="store")
    if len(spec.config.nodes) == 1 and agent.nice:
        os.nice(agent.nice)  # alone, it makes way for searches; it can't be taken back
    try:
        uvloop.run(Store(spec, Page(spec.page_fd), log).run())
    except* (ShoalError, OSError) as problems:
        for problem in problems.exceptions:
            log.error("store.failed", text=str(problem), code=getattr(problem, "code", "os-error"))
        sys.exit(1)


if __name__ == "__main__":
    main()
