"""The command line: what `shoal` understands, and how it ends.

Imports little, so that `shoal --help` answers at once: a command loads what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core.errors import BadRequest, ExitCode, ShoalError
from core.version import VERSION

if TYPE_CHECKING:
    from core.config import ClusterConfig

RunAgent = Callable[["ClusterConfig", str], int]

_config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="cluster.toml. Without it: $SHOAL_CONFIG, ./cluster.toml, /etc/shoal/cluster.toml.",
)


def run(arguments: Sequence[str], run_agent: RunAgent) -> int:
    """Does what the arguments say; returns the exit status. Errors that Shoal knows end in words."""
    try:
        status = _commands(run_agent).main(list(arguments), prog_name="shoal", standalone_mode=False)
    except ShoalError as error:
        for line in str(error).splitlines():
            click.echo(f"shoal: {line}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("shoal: interrupted", err=True)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # `shoal … | head` has read enough. Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    return status if isinstance(status, int) else ExitCode.OK


def _commands(run_agent: RunAgent) -> click.Group:
    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(VERSION, message="shoal %(version)s")
    def shoal() -> None:
        """Shoal: vector search on a cluster of nodes, with Qdrant's REST API."""

    @shoal.command()
    @_config_option
    @click.option("--node", "node_id", envvar="SHOAL_NODE", help="Which of the file's nodes this is.")
    def agent(config_path: Path | None, node_id: str | None) -> int:
        """Run one node in the foreground, until SIGTERM or Ctrl-C."""
        from console.cli.config_file import load

        config = load(config_path).config
        return run_agent(config, _chosen_node(config, node_id))

    shoal.add_command(_coordinator)
    shoal.add_command(_up)
    shoal.add_command(_config_commands())
    shoal.add_command(_demo)
    return shoal


def _chosen_node(config: ClusterConfig, node_id: str | None) -> str:
    if node_id is not None:
        return config.node(node_id).id
    if len(config.nodes) > 1:
        known = ", ".join(node.id for node in config.nodes)
        raise BadRequest(f"which node is this? Say --node with one of {known}, or set SHOAL_NODE")
    return config.nodes[0].id


def _config_commands() -> click.Group:
    @click.group()
    def config() -> None:
        """Look at cluster.toml before a node does."""

    @config.command()
    @_config_option
    def check(config_path: Path | None) -> None:
        """Say every mistake in cluster.toml and the environment; exit status 2 if there is one."""
        from console.cli.config_file import check_files, load

        loaded = load(config_path)
        check_files(loaded)
        nodes = ", ".join(f"{node.id} at {node.address}" for node in loaded.config.nodes)
        click.echo(f"{loaded.path}: no mistakes. Cluster {loaded.config.name}: {nodes}")

    @config.command()
    @_config_option
    def show(config_path: Path | None) -> None:
        """Print the config as it counts: the environment over the file over the defaults."""
        from console.cli.config_file import load
        from core.config import to_toml

        click.echo(to_toml(load(config_path).config), nl=False)

    return config


@click.command("coordinator")
@_config_option
@click.option("--name", help="Its name in events and logs. Without it: this machine's.")
def _coordinator(config_path: Path | None, name: str | None) -> int:
    """Stand for election in the foreground, and lead the cluster while elected.

    Several may run: one leads, the others take over when it ends. SIGTERM or Ctrl-C hands over at once.
    """
    import socket

    from console.cli.config_file import load
    from console.coordinator.main import run_coordinator

    return run_coordinator(load(config_path).config, name or socket.gethostname(), click.echo)


@click.command("up")
@click.argument(
    "config_path", metavar="[CLUSTER.TOML]", type=click.Path(path_type=Path, dir_okay=False), required=False
)
def _up(config_path: Path | None) -> int:
    """Run all nodes of cluster.toml and one coordinator on this machine, until SIGTERM or Ctrl-C.

    What dies is started again. Logs are in the data folder. Nodes that only this machine can reach get
    a secret there, too, if the file names none.
    """
    from console.cli.config_file import load
    from console.up.main import run_up

    return run_up(load(config_path), say=click.echo, warn=lambda text: click.echo(f"shoal: {text}", err=True))


@click.command("demo")
@click.option(
    "--texts", type=click.IntRange(100, 20_000), default=6_000, show_default=True, help="How many at most."
)
@click.option("--keep", is_flag=True, help="Leave the data folder behind, and say where it is.")
def _demo(texts: int, keep: bool) -> int:
    """Start three nodes, fill them with this Python's documentation, search it, kill one under writes.

    Everything that it says is measured: how well and how fast is found, how long the failover took, how many
    acknowledged writes were lost.
    """
    # Before numpy loads: two BLAS threads wait for each other where the cores are busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from console.demo.main import run_demo

    return run_demo(texts_max=texts, keep=keep)
