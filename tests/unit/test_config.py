"""cluster.toml: what is read, every mistake at once with its line, environment over file over defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from core.config import (
    AgentConfig,
    ClusterConfig,
    NodeConfig,
    TlsConfig,
    config_from_json,
    config_to_json,
    read_config,
    to_toml,
)
from core.config_values import Watermark
from core.errors import ConfigInvalid, ExitCode, NotFound

GOLDEN = Path(__file__).parent / "golden"
ONE_NODE = '[[nodes]]\nid = "n1"\naddress = "127.0.0.1:6333"\n'


def read(text: str, environ: Mapping[str, str] | None = None) -> ClusterConfig:
    return read_config(text, folder="/etc/shoal", environ=environ or {})


def mistakes(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigInvalid) as raised:
        read(text, environ)
    assert raised.value.exit_code == ExitCode.USAGE
    return str(raised.value).splitlines()


def test_one_node_needs_only_an_id_and_an_address() -> None:
    assert read(ONE_NODE) == ClusterConfig(
        name="shoal",
        data_dir="/etc/shoal/data",
        nodes=(
            NodeConfig(
                id="n1", address="127.0.0.1:6333", peer_address="127.0.0.1:6335", listen="127.0.0.1:6333"
            ),
        ),
        agent=AgentConfig(nice=10),
    )


def test_every_key_is_read() -> None:
    config = read(
        """
        [cluster]
        name = "prod"
        data_dir = "/var/lib/shoal"
        state = "voters"
        api_key_file = "keys/full"
        read_only_api_key_file = "../keys/read"
        admin_key_file = "keys/admin"
        secret_file = "keys/secret"
        [tls]
        cert = "tls/cert.pem"
        key = "tls/key.pem"
        ca = "tls/ca.pem"
        [[nodes]]
        id = "n1"
        address = "db1.example.com:6333"
        peer_address = "10.0.0.1:7000"
        listen = "0.0.0.0:6333"
        zone = "a"
        weight = 2
        voter = true
        [[nodes]]
        id = "n2"
        address = "[fd00::2]:6333"
        voter = false
        [agent]
        fronts = 3
        nice = 5
        insecure = false
        log_format = "json"
        log_level = "debug"
        slow_request_ms = 250
        disk_low_water = "5%"
        memory_low_water = "1.5 GiB"
        cors_origins = ["https://app.example.com"]
        gzip = true
        """
    )
    assert config == ClusterConfig(
        name="prod",
        data_dir="/var/lib/shoal",
        state="voters",
        api_key_file="/etc/shoal/keys/full",
        read_only_api_key_file="/etc/keys/read",
        admin_key_file="/etc/shoal/keys/admin",
        secret_file="/etc/shoal/keys/secret",
        tls=TlsConfig("/etc/shoal/tls/cert.pem", "/etc/shoal/tls/key.pem", "/etc/shoal/tls/ca.pem"),
        nodes=(
            NodeConfig("n1", "db1.example.com:6333", "10.0.0.1:7000", "0.0.0.0:6333", "a", 2.0, True),
            NodeConfig("n2", "[fd00::2]:6333", "[fd00::2]:6335", "[fd00::2]:6333", voter=False),
        ),
        agent=AgentConfig(
            fronts=3,
            nice=5,
            log_format="json",
            log_level="debug",
            slow_request_ms=250,
            disk_low_water=Watermark(percent=5),
            memory_low_water=Watermark(amount_bytes=3 << 29),
            cors_origins=("https://app.example.com",),
            gzip=True,
        ),
    )


def test_all_mistakes_are_said_at_once_each_with_its_line() -> None:
    text = (GOLDEN / "many_mistakes.toml").read_text()
    expected = (GOLDEN / "many_mistakes.txt").read_text().splitlines()
    assert mistakes(text, {"SHOAL_NICE": "99"}) == expected


def test_a_syntax_error_is_reported_alone_with_its_line() -> None:
    (only,) = mistakes('[cluster]\nname = "a"\nname = \n[agent]\nfronts = "x"\n')
    assert only.startswith("cluster.toml:3: this is not TOML: ")


@pytest.mark.parametrize("text", ["", "[cluster]\n", "nodes = []\n", 'nodes = "n1"\n'])
def test_a_file_without_a_node_says_so(text: str) -> None:
    (only,) = mistakes(text)
    assert "expected at least one [[nodes]] with an id and an address" in only


def test_a_node_without_id_and_address_lacks_both() -> None:
    assert mistakes('[cluster]\n[[nodes]]\nzone = "a"\n') == [
        "cluster.toml:2: nodes[0]: id is missing",
        "cluster.toml:2: nodes[0]: address is missing",
    ]


@pytest.mark.parametrize(
    "node_id", ["", ".", "..", "a/b", "a\\b", "-a", "a b", "a\0b", "é", "a.b", "n1\n", "x" * 64]
)
def test_a_node_id_is_never_a_path(node_id: str) -> None:
    text = f'[[nodes]]\nid = {json.dumps(node_id)}\naddress = "127.0.0.1:1"\n'
    assert any("nodes[0].id: found" in line for line in mistakes(text))


@pytest.mark.parametrize(
    "address",
    ["", "localhost", ":6333", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:+1", "256.0.0.1:1",
     "::1:6333", "[::1]6333", "[::1", "a b:1", "-a:1", "a..b:1", "http://a:1", "127.0.0.1:٣", "127.0.0.1:1 "],
)  # fmt: skip
def test_an_address_that_cannot_be_bound_is_a_mistake(address: str) -> None:
    text = f'[[nodes]]\nid = "n1"\naddress = {json.dumps(address)}\n[agent]\ninsecure = true\n'
    assert any("nodes[0].address: found" in line for line in mistakes(text))


def test_a_port_without_room_for_the_peer_port_is_a_mistake() -> None:
    (only,) = mistakes('[[nodes]]\nid = "n1"\naddress = "127.0.0.1:65534"\n')
    assert "expected a port up to 65533, or a peer_address beside it" in only


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "[::1]"])
def test_on_loopback_no_key_is_needed(host: str) -> None:
    assert read(f'[[nodes]]\nid = "n1"\naddress = "{host}:6333"\n').nodes[0].address == f"{host}:6333"


OPEN = '[[nodes]]\nid = "n1"\naddress = "127.0.0.1:6333"\nlisten = "0.0.0.0:6333"\n'
KEY = '[cluster]\napi_key_file = "k"\n'
TLS = '[tls]\ncert = "c"\nkey = "k"\n'


@pytest.mark.parametrize(
    ("text", "needs"), [(OPEN, "api_key_file and [tls]"), (KEY + OPEN, "[tls]"), (OPEN + TLS, "api_key_file")]
)
def test_beyond_loopback_a_node_needs_a_key_and_tls(text: str, needs: str) -> None:
    (only,) = mistakes(text)
    line = 1 + text.splitlines().index('listen = "0.0.0.0:6333"')
    assert only == (
        f"cluster.toml:{line}: nodes[0].listen: 0.0.0.0:6333 can be reached from other machines; "
        f"that needs {needs}, or insecure = true under [agent], or listen on 127.0.0.1"
    )


@pytest.mark.parametrize("text", [KEY + OPEN + TLS, OPEN + "[agent]\ninsecure = true\n"])
def test_beyond_loopback_with_a_key_and_tls_or_by_request(text: str) -> None:
    assert read(text).nodes[0].listen == "0.0.0.0:6333"


def test_a_certificate_needs_its_key() -> None:
    assert mistakes(ONE_NODE + '[tls]\ncert = "c"\n') == [
        "cluster.toml:4: tls: key is missing; cert and key are needed together"
    ]


def test_a_weaker_key_alone_is_a_mistake() -> None:
    assert mistakes('[cluster]\nread_only_api_key_file = "r"\n' + ONE_NODE) == [
        "cluster.toml:2: cluster.read_only_api_key_file: is no use without api_key_file"
    ]


def test_at_least_one_node_is_a_voter() -> None:
    assert "expected at least one voter" in mistakes(ONE_NODE + "voter = false\n")[0]


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("SHOAL_FRONTS", "2", "fronts", 2),
        ("SHOAL_FRONTS", "auto", "fronts", None),
        ("SHOAL_NICE", "0", "nice", 0),
        ("SHOAL_NICE", "1", "nice", 1),
        ("SHOAL_GZIP", "1", "gzip", True),
        ("SHOAL_GZIP", "off", "gzip", False),
        ("SHOAL_LOG_FORMAT", "json", "log_format", "json"),
        ("SHOAL_DISK_LOW_WATER", "100", "disk_low_water", Watermark(amount_bytes=100)),
        ("SHOAL_DISK_LOW_WATER", "2GB", "disk_low_water", Watermark(amount_bytes=2 << 30)),
        ("SHOAL_CORS_ORIGINS", "http://a, https://b:8", "cors_origins", ("http://a", "https://b:8")),
        ("SHOAL_CORS_ORIGINS", "", "cors_origins", ()),
    ],
)
def test_the_environment_counts_before_the_file(variable: str, text: str, key: str, value: object) -> None:
    in_file = ONE_NODE + "[agent]\nfronts = 7\nnice = 7\ngzip = true\ndisk_low_water = 7\n"
    assert getattr(read(in_file, {variable: text}).agent, key) == value


def test_paths_and_certificates_come_from_the_environment_too() -> None:
    environ = {
        "SHOAL_DATA_DIR": "/srv/shoal",
        "SHOAL_NAME": "1",
        "SHOAL_API_KEY_FILE": "k",
        "SHOAL_TLS_CERT": "c",
        "SHOAL_TLS_KEY": "/run/k",
    }
    config = read(OPEN, environ)
    assert (config.data_dir, config.name, config.api_key_file) == ("/srv/shoal", "1", "/etc/shoal/k")
    assert config.tls == TlsConfig("/etc/shoal/c", "/run/k")


def test_a_mistyped_variable_is_a_mistake_and_a_strange_one_is_not() -> None:
    environ = {"SHOAL_LOG_FORMT": "json", "SHOAL_BACKUP_BUCKET": "x", "SHOAL_CONFIG": "y", "PATH": "/bin"}
    assert mistakes(ONE_NODE, environ) == [
        "SHOAL_LOG_FORMT: unknown variable; did you mean SHOAL_LOG_FORMAT?"
    ]


def test_the_store_makes_way_only_where_it_has_no_peers() -> None:
    second = '[[nodes]]\nid = "n2"\naddress = "127.0.0.1:6433"\n'
    assert read(ONE_NODE).agent.nice == 10
    assert read(ONE_NODE + second).agent.nice == 0
    assert read(ONE_NODE + second + "[agent]\nnice = 4\n").agent.nice == 4


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("0", Watermark()),
        ("1024", Watermark(amount_bytes=1024)),
        ('"512MB"', Watermark(amount_bytes=512 << 20)),
        ('"1.5 GiB"', Watermark(amount_bytes=3 << 29)),
        ('"10kB"', Watermark(amount_bytes=10240)),
        ('"7B"', Watermark(amount_bytes=7)),
        ('"9007199254740993B"', Watermark(amount_bytes=9007199254740993)),
        ('"2.5%"', Watermark(percent=2.5)),
    ],
)
def test_a_watermark_is_bytes_or_a_share(found: str, expected: Watermark) -> None:
    assert read(ONE_NODE + f"[agent]\ndisk_low_water = {found}\n").agent.disk_low_water == expected


@pytest.mark.parametrize(
    "found", ['"100%"', '"-1%"', "-1", '"5"', '"5 XB"', "true", "1.5", '"9999999TB"', "nan"]
)
def test_no_other_watermark_is_accepted(found: str) -> None:
    (only,) = mistakes(ONE_NODE + f"[agent]\ndisk_low_water = {found}\n")
    assert only.startswith("cluster.toml:5: agent.disk_low_water: found ")


def test_a_watermark_in_bytes_of_a_disk() -> None:
    assert Watermark(percent=5).of(1000) == 50
    assert Watermark(amount_bytes=7).of(1000) == 7


def test_links_are_led_elsewhere_only_in_tests() -> None:
    text = ONE_NODE + '[test]\ndial = {"n2->n1" = "127.0.0.1:7000", n3 = "127.0.0.1:8000"}\n'
    assert mistakes(text) == ["cluster.toml:4: unknown table 'test'; known here: cluster, tls, nodes, agent"]
    config = read(text, {"SHOAL_TEST": "1"})
    there = ("127.0.0.1", 6335)
    assert config.dialled("n2", "n1", there) == ("127.0.0.1", 7000)
    assert config.dialled("n3", "n1", there) == there
    assert config.dialled("n1", "n3", there) == ("127.0.0.1", 8000)
    assert read_config(to_toml(config), folder="/", environ={"SHOAL_TEST": "1"}) == config


def test_an_unknown_node_is_answered_with_those_there_are() -> None:
    config = read(ONE_NODE + '[[nodes]]\nid = "n2"\naddress = "127.0.0.1:6433"\n')
    assert config.node("n2").peer_address == "127.0.0.1:6435"
    assert config.data_folder("n2") == "/etc/shoal/data/n2"
    with pytest.raises(NotFound, match="'n3' is not in cluster.toml, which has n1, n2"):
        config.node("n3")


node_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
agents = st.builds(
    AgentConfig,
    fronts=st.none() | st.integers(1, 256),
    nice=st.integers(0, 19),
    insecure=st.booleans(),
    slow_request_ms=st.integers(0, 1000),
    disk_low_water=st.builds(Watermark, amount_bytes=st.integers(0, 1 << 60)),
    memory_low_water=st.builds(Watermark, percent=st.sampled_from([0.5, 5.0, 99.0])),
    cors_origins=st.sampled_from([(), ("*",), ("https://a", "http://b:1")]),
)


@st.composite
def configs(draw: st.DrawFn) -> ClusterConfig:
    ids = draw(st.lists(node_ids, min_size=1, max_size=4, unique=True))
    keyed = draw(st.booleans())
    return ClusterConfig(
        name="c",
        data_dir="/data",
        nodes=tuple(
            NodeConfig(node_id, f"127.0.0.{i}:6333", f"127.0.0.{i}:{6334 + i}", f"[::1]:{i}")
            for i, node_id in enumerate(ids, 1)
        ),
        agent=draw(agents),
        api_key_file="/k" if keyed else None,
        tls=TlsConfig("/c", "/k", draw(st.none() | st.just("/ca"))) if keyed else None,
    )


@given(configs())
def test_a_config_survives_its_file_and_the_way_to_a_child(config: ClusterConfig) -> None:
    assert read_config(to_toml(config), folder="/elsewhere", environ={}) == config
    assert config_from_json(config_to_json(config)) == config
    assert msgspec.convert(msgspec.to_builtins(config), ClusterConfig) == config


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    ["cluster", "nodes", "agent", "tls", "id", "address", "fronts", "cors_origins", "weight", "cert"]
)


@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=4), max_size=4))
def test_any_document_is_a_config_or_a_list_of_mistakes(document: dict[str, object]) -> None:
    with suppress(ConfigInvalid):
        assert read(_as_toml(document)).nodes


@given(st.text(alphabet=st.sampled_from("[]{}=\"'#\n.a1, \\"), max_size=60))
def test_any_text_is_a_config_or_a_list_of_mistakes(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        read(text)


def _as_toml(document: dict[str, object]) -> str:
    def plain(value: object) -> object:
        if value is None:
            return "none"
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    return tomli_w.dumps({key: plain(value) for key, value in document.items()})


@pytest.mark.parametrize("text", ["[" * 5_000 + "]" * 5_000, "{a=" * 5_000 + "1" + "}" * 5_000])
def test_a_text_that_is_nested_too_deeply_is_a_mistake_like_others(text: str) -> None:
    [only] = mistakes(f"{ONE_NODE}deep = {text}\n")
    assert only == "cluster.toml: its arrays or tables are nested too deeply to be read"
