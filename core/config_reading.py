"""From a parsed cluster.toml and the environment to plain values, collecting every mistake on the way."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from core import config_values as values
from core.config_values import Reader, host_port, is_loopback
from core.toml_lines import Path, line_of

Table = dict[str, object]

_PEER_PORT_OFFSET = 2
_FROM_ENVIRONMENT = -1  # in place of a line: these mistakes are listed first

# What each table may hold, and how it is read.
_CLUSTER: dict[str, Reader] = {
    "name": values.name,
    "data_dir": values.path,
    "state": values.state,
    "etcd_user": values.name,
    "etcd_password_file": values.path,
    "api_key_file": values.path,
    "read_only_api_key_file": values.path,
    "admin_key_file": values.path,
    "secret_file": values.path,
    "auto_join": values.boolean,
}
_TLS: dict[str, Reader] = {"cert": values.path, "key": values.path, "ca": values.path}
_NODE: dict[str, Reader] = {
    "id": values.name,
    "address": values.address,
    "peer_address": values.address,
    "listen": values.address,
    "zone": values.zone,
    "weight": values.weight,
    "voter": values.boolean,
}
_AGENT: dict[str, Reader] = {
    "fronts": values.fronts,
    "nice": values.whole(0, 19),
    "insecure": values.boolean,
    "log_format": values.one_of("json", "logfmt"),
    "log_level": values.one_of("debug", "info", "warning", "error"),
    "slow_request_ms": values.whole(0, 3_600_000),
    "disk_low_water": values.watermark,
    "memory_low_water": values.watermark,
    "cors_origins": values.origins,
    "gzip": values.boolean,
}
_TABLES = {"cluster": _CLUSTER, "tls": _TLS, "nodes": _NODE, "agent": _AGENT}
# Known only with SHOAL_TEST=1: a line left behind must not lead a cluster's traffic elsewhere.
_TEST: dict[str, Reader] = {"dial": values.dial}
# The environment reaches every table but [[nodes]], which is a list.
_VARIABLES = {
    **{f"SHOAL_{key.upper()}": ("cluster", key) for key in _CLUSTER},
    **{f"SHOAL_TLS_{key.upper()}": ("tls", key) for key in _TLS},
    **{f"SHOAL_{key.upper()}": ("agent", key) for key in _AGENT},
}
_READ_ELSEWHERE = ("SHOAL_CONFIG", "SHOAL_NODE")  # by the command line


@dataclass(slots=True)
class Reading:
    """One pass over a file: `document` reads it, `report` says what was wrong with it."""

    source: str
    folder: str
    environ: Mapping[str, str]
    lines: dict[Path, int]
    mistakes: list[tuple[int, str]] = field(default_factory=list)

    def report(self) -> list[str]:
        """All mistakes, the environment's first, then by line."""
        return [text for _, text in sorted(self.mistakes, key=lambda mistake: mistake[0])]

    def document(self, found: Table) -> Table:
        """All that could be read, in the shape of ClusterConfig."""
        test = self._table(("test",), found.pop("test", {}), _TEST) if self._is_test() else {}
        for name in found:
            if name not in _TABLES:
                kind = "table" if isinstance(found[name], dict | list) else "key"
                self.mistake((name,), f"unknown {kind} {name!r}{_hint(name, _TABLES)}")
        _check_variables(self)
        cluster = self._overlaid("cluster", found)
        tls = self._overlaid("tls", found)
        agent = self._overlaid("agent", found)
        nodes = self._nodes(found.get("nodes", []))
        _check_tls(self, tls)
        _check_keys(self, cluster)
        _check_addresses(self, nodes)
        if not agent.get("insecure"):
            has_tls = {"cert", "key"} <= tls.keys()
            _check_closed(self, nodes, has_key="api_key_file" in cluster, has_tls=has_tls)
        agent.setdefault("nice", 10 if len(nodes) == 1 else 0)
        defaults = {"name": "shoal", "data_dir": values.placed(self.folder, "data")}
        tables = {"tls": tls or None, "nodes": nodes, "agent": agent, "test_dial": test.get("dial")}
        return defaults | cluster | tables

    def _is_test(self) -> bool:
        return self.environ.get("SHOAL_TEST") == "1"

    def mistake(self, path: Path, text: str) -> None:
        line = line_of(self.lines, path)
        place = f"{self.source}:{line}" if line else self.source
        self.mistakes.append((line or 0, f"{place}: {text}"))

    def wrong(self, path: Path, value: object, expected: object) -> None:
        self.mistake(path, f"{_dotted(path)}: found {_shown(value)}, expected {expected}")

    def _overlaid(self, name: str, document: Table) -> Table:
        """A table of the file with the environment's values over it."""
        table = self._table((name,), document.get(name, {}), _TABLES[name])
        for variable, (owner, key) in _VARIABLES.items():
            text = self.environ.get(variable)
            if owner != name or text is None:
                continue
            reader = _TABLES[name][key]
            try:
                table[key] = self._placed(reader, values.from_text(reader, text))
            except ValueError as expected:
                text = f"{variable}: found {_shown(text)}, expected {expected}"
                self.mistakes.append((_FROM_ENVIRONMENT, text))
        return table

    def _table(self, path: Path, found: object, readers: Mapping[str, Reader]) -> Table:
        """The values that could be read; mistakes for the others, and for unknown keys."""
        if not isinstance(found, dict):
            self.wrong(path, found, f"a table, [{_dotted(path)}]")
            return {}
        read: Table = {}
        for key, value in found.items():
            here = (*path, key)
            reader = readers.get(key)
            if reader is None:
                self.mistake(here, f"{_dotted(here)}: unknown key{_hint(key, readers)}")
                continue
            try:
                read[key] = self._placed(reader, reader(value))
            except ValueError as expected:
                self.wrong(here, value, expected)
        return read

    def _placed(self, reader: Reader, value: object) -> object:
        return values.placed(self.folder, str(value)) if reader is values.path else value

    def _nodes(self, found: object) -> list[Table]:
        if not isinstance(found, list) or not found:
            self.wrong(("nodes",), found, "at least one [[nodes]] with an id and an address")
            return []
        nodes = []
        for index, table in enumerate(found):
            node = self._table(("nodes", index), table, _NODE)
            for needed in ("id", "address"):
                if isinstance(table, dict) and needed not in table:
                    self.mistake(("nodes", index), f"{_dotted(('nodes', index))}: {needed} is missing")
            if "address" in node:
                self._add_addresses(index, node)
            nodes.append(node)
        if not any(node.get("voter", True) for node in nodes):
            self.mistake(("nodes",), "nodes: all have voter = false, expected at least one voter")
        return nodes

    def _add_addresses(self, index: int, node: Table) -> None:
        node.setdefault("listen", node["address"])
        host, port = host_port(str(node["address"]))
        if "peer_address" not in node:
            peer_port = port + _PEER_PORT_OFFSET
            if peer_port > 65535:
                expected = "a port up to 65533, or a peer_address beside it"
                self.wrong(("nodes", index, "address"), node["address"], expected)
            node["peer_address"] = f"[{host}]:{peer_port}" if ":" in host else f"{host}:{peer_port}"


def _check_variables(reading: Reading) -> None:
    """Without this a mistyped variable would change nothing, in silence. Others than ours may exist."""
    known = [*_VARIABLES, *_READ_ELSEWHERE]
    for variable in reading.environ:
        if variable.startswith("SHOAL_") and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
            if near:
                text = f"{variable}: unknown variable; did you mean {near[0]}?"
                reading.mistakes.append((_FROM_ENVIRONMENT, text))


def _check_tls(reading: Reading, tls: Table) -> None:
    for needed in ("cert", "key"):
        if tls and needed not in tls:
            reading.mistake(("tls",), f"tls: {needed} is missing; cert and key are needed together")


def _check_keys(reading: Reading, cluster: Table) -> None:
    for weaker in ("read_only_api_key_file", "admin_key_file"):
        if weaker in cluster and "api_key_file" not in cluster:
            reading.mistake(("cluster", weaker), f"cluster.{weaker}: is no use without api_key_file")


def _check_addresses(reading: Reading, nodes: list[Table]) -> None:
    ids: dict[object, int] = {}
    taken: dict[object, str] = {}
    for index, node in enumerate(nodes):
        if "id" in node and (first := ids.setdefault(node["id"], index)) != index:
            text = f"nodes[{index}].id: {_shown(node['id'])} is taken by nodes[{first}].id"
            reading.mistake(("nodes", index, "id"), text)
        for key in ("address", "peer_address"):
            here = f"nodes[{index}].{key}"
            if key in node and (owner := taken.setdefault(node[key], here)) != here:
                reading.mistake(("nodes", index, key), f"{here}: {_shown(node[key])} is taken by {owner}")


def _check_closed(reading: Reading, nodes: list[Table], *, has_key: bool, has_tls: bool) -> None:
    """Open to a network without a key and TLS is how others lose their data: it must be asked for."""
    lacking = [name for name, has in (("api_key_file", has_key), ("[tls]", has_tls)) if not has]
    if not lacking:
        return
    for index, node in enumerate(nodes):
        listen = str(node.get("listen", "127.0.0.1:0"))
        if not is_loopback(host_port(listen)[0]):
            key = "listen" if ("nodes", index, "listen") in reading.lines else "address"
            reading.mistake(
                ("nodes", index, key),
                f"nodes[{index}].{key}: {listen} can be reached from other machines; that needs "
                f"{' and '.join(lacking)}, or insecure = true under [agent], or listen on 127.0.0.1",
            )


def _hint(name: str, known: Iterable[str]) -> str:
    """Where an unknown name belongs, or what it resembles, or what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    owners = [table for table, readers in _TABLES.items() if name in readers]
    if owners:
        return f"; it belongs under {' or '.join(_header(owner) for owner in owners)}"
    return f"; known here: {', '.join(known)}"


def _header(table: str) -> str:
    return f"[[{table}]]" if table == "nodes" else f"[{table}]"


def _dotted(path: Path) -> str:
    """("nodes", 1, "id") as nodes[1].id."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shown(value: object) -> str:
    """A value as TOML would write it, cut short: it may be anything."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
