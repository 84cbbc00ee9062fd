"""The `shoal` command: the one place that knows both the agent and the console."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from console.cli.main import run

if TYPE_CHECKING:
    from core.config import ClusterConfig


def run_agent(config: ClusterConfig, node_id: str) -> int:
    """One node in the foreground, until it is told to stop."""
    # Loaded here, not above: no other command should pay for it.
    from agent.main import run as run_node

    return run_node(config, node_id)


def main() -> None:
    """What the installed script calls."""
    sys.exit(run(sys.argv[1:], run_agent))


if __name__ == "__main__":
    main()
