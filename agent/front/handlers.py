"""All handlers of a front, and the one table of its routes."""

from __future__ import annotations

from agent.child import Spec
from agent.front.cluster import Cluster
from agent.front.collections import Collections
from agent.front.node import Node
from agent.front.points import Points
from agent.front.routes import Route
from agent.front.search import Search
from agent.front.serving import Serving
from agent.front.settings import SettingsHandlers
from agent.front.snapshots import Snapshots
from agent.link import Client
from agent.machine import front_count
from agent.metrics import Metrics
from agent.page import Page


class Handlers:
    """Makes the handlers, which share the map, the link and the metrics of this front."""

    def __init__(self, spec: Spec, page: Page, link: Client, serving: Serving, metrics: Metrics) -> None:
        self._search = Search(serving, metrics, fronts=front_count(spec.config.agent.fronts))
        self._all = (
            Node(page, serving),
            Cluster(link, serving, spec.node.id, "https" if spec.config.tls is not None else "http"),
            Collections(link, serving),
            Points(link, serving, metrics),
            SettingsHandlers(link, serving),
            Snapshots(page, link, serving),
            self._search,
        )

    def routes(self) -> list[Route]:
        return [route for part in self._all for route in part.routes()]

    def close(self) -> None:
        self._search.close()
