"""Fixtures shared by all tests: a session's agent, agents of one's own, and their logs when a test fails."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running.agent import RunningAgent
from tests.running.cluster import RunningCluster
from tests.running.rest import Rest

AGENTS = pytest.StashKey[list[RunningAgent]]()
CLUSTERS = pytest.StashKey[list[RunningCluster]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[AGENTS] = []
    config.stash[CLUSTERS] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the log of each agent that ran during a failed test."""
    report = yield
    if report.failed:
        for agent in item.config.stash[AGENTS]:
            report.sections.append((f"log of the agent in {agent.folder}", agent.log_tail()))
        for cluster in item.config.stash[CLUSTERS]:
            report.sections.extend(cluster.logs())
    return report


@pytest.fixture(scope="session")
def shared_agent(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[RunningAgent]:
    """One agent with two fronts for all tests that only need some collection (use unique names)."""
    agent = RunningAgent(tmp_path_factory.mktemp("shared"), agent={"fronts": 2})
    request.config.stash[AGENTS].append(agent)
    with agent:
        yield agent.start()


@pytest.fixture
def rest(shared_agent: RunningAgent) -> Iterator[Rest]:
    client = shared_agent.rest()
    yield client
    client.close()


@pytest.fixture
def collection_name() -> str:
    """A name that no other test uses."""
    return f"c-{secrets.token_hex(6)}"


@pytest.fixture
def new_agent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., RunningAgent]]:
    """`new_agent(…)` makes an agent (not yet started) in its own folder; it is ended after the test."""
    agents: list[RunningAgent] = []

    def make(*, folder: Path | None = None, **options: Any) -> RunningAgent:
        agent = RunningAgent(folder or tmp_path / f"agent{len(agents)}", **options)
        agents.append(agent)
        request.config.stash[AGENTS].append(agent)
        return agent

    yield make
    for agent in agents:
        agent.close()
        request.config.stash[AGENTS].remove(agent)


@pytest.fixture
def new_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., RunningCluster]]:
    """`new_cluster(…)` makes a cluster (not yet started) in its own folder; it is ended after the test."""
    clusters: list[RunningCluster] = []

    def make(**options: Any) -> RunningCluster:
        cluster = RunningCluster(tmp_path / f"cluster{len(clusters)}", **options)
        clusters.append(cluster)
        request.config.stash[CLUSTERS].append(cluster)
        return cluster

    yield make
    for cluster in clusters:
        cluster.close()
        request.config.stash[CLUSTERS].remove(cluster)
