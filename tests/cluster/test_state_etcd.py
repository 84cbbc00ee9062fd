"""The StateStore in a real etcd: the suite that the embedded one passes, then failures, TLS and users."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import trustme

from agent.store.state.etcd import EtcdState
from agent.store.state.port import StateStore, VersionConflict, Versioned
from core.errors import Damaged, Unavailable
from tests.running.etcd import Files, RunningEtcd
from tests.unit.conformance_state import StateStoreConformance, write


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEtcd]:
    with RunningEtcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


def on(*urls: str, cluster: str = "", timeout_s: float = 5.0) -> EtcdState:
    return EtcdState(
        urls, cluster=cluster or secrets.token_hex(4), writer=secrets.token_hex(4), timeout_s=timeout_s
    )


class TestEtcd(StateStoreConformance):
    @pytest.fixture
    async def state(self, etcd: RunningEtcd) -> AsyncIterator[StateStore]:
        async with on(etcd.url) as state:
            yield state


async def test_two_clusters_in_one_etcd_do_not_see_each_other(etcd: RunningEtcd) -> None:
    async with on(etcd.url) as one, on(etcd.url) as other:
        await write(one, "map", 0, b"mine")
        assert await other.read("map") == Versioned(None, 0)
        assert await other.list("") == {}


async def test_more_keys_than_a_page_are_listed(etcd: RunningEtcd) -> None:
    async with on(etcd.url) as state:
        keys = [f"jobs/{n:04}" for n in range(450)]
        for at in range(0, 450, 50):
            await asyncio.gather(*(write(state, key, 0, key.encode()) for key in keys[at : at + 50]))
        await write(state, "jobs", 0, b"not under the prefix")
        assert list(await state.list("jobs/")) == keys


async def test_a_value_of_a_megabyte_is_kept_and_watched(etcd: RunningEtcd) -> None:
    async with on(etcd.url) as state:
        value = secrets.token_bytes(1 << 20)
        watching = asyncio.create_task(state.watch("shards/1", 0))
        version = await write(state, "shards/1", 0, value)
        async with asyncio.timeout(10):
            assert await watching == Versioned(value, version)


async def test_a_dead_server_is_passed_over(etcd: RunningEtcd) -> None:
    async with on("http://127.0.0.1:9", etcd.url) as state:
        version = await write(state, "map", 0, b"x")
        assert await state.read("map") == Versioned(b"x", version)


async def test_killed_it_is_unavailable_in_words_and_back_it_has_what_was_written(tmp_path: Path) -> None:
    with RunningEtcd(tmp_path / "etcd") as etcd:
        patient = on(etcd.url, cluster="c", timeout_s=20.0)
        async with on(etcd.url, cluster="c", timeout_s=1.0) as state, patient:
            version = await write(state, "map", 0, b"kept")
            watching = asyncio.create_task(patient.watch("map", version))
            etcd.kill()
            with pytest.raises(Unavailable, match=f"etcd at {etcd.url}.*onnect"):
                await state.compare_and_set("map", version, b"lost")
            etcd.start()
            assert await state.read("map") == Versioned(b"kept", version)
            newer = await write(state, "map", version, b"newer")
            async with asyncio.timeout(10):
                assert await watching == Versioned(b"newer", newer)


async def test_a_write_to_a_stopped_server_takes_effect_once(tmp_path: Path) -> None:
    with RunningEtcd(tmp_path / "etcd") as etcd:
        async with on(etcd.url, timeout_s=8.0) as state:
            version = await write(state, "n", 0, b"0")
            etcd.stop()
            writing = asyncio.create_task(state.compare_and_set("n", version, b"1"))
            # Long enough for a try to be given up: the server finds it when it wakes, and the next one, too.
            done, _ = await asyncio.wait([writing], timeout=2.0)
            assert not done
            etcd.go_on()
            newer = await writing
            assert isinstance(newer, int)
            assert await state.read("n") == Versioned(b"1", newer)
            assert await state.compare_and_set("n", version, b"2") == VersionConflict(Versioned(b"1", newer))


async def test_a_foreign_value_is_damage_and_named(etcd: RunningEtcd) -> None:
    async with on(etcd.url, cluster="foreign") as state, aiohttp.ClientSession() as session:
        # "shoal/foreign/map" = "hello", as etcdctl would put it
        body = {"key": "c2hvYWwvZm9yZWlnbi9tYXA=", "value": "aGVsbG8="}
        async with session.post(f"{etcd.url}/v3/kv/put", json=body) as response:
            assert response.status == 200
        with pytest.raises(Damaged, match="shoal/foreign/map"):
            await state.read("map")


async def test_over_tls_with_a_user_and_without(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = Files(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(files.cert)
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.ca)
    trusting = ssl.create_default_context(cafile=str(files.ca))
    with RunningEtcd(tmp_path / "etcd", tls=files) as etcd:
        await _enable_users(etcd.url, trusting)

        def state(password: str | None, tls: ssl.SSLContext | None = trusting) -> EtcdState:
            user = "root" if password is not None else None
            return EtcdState(
                [etcd.url], cluster="c", writer="w", user=user, password=password, tls=tls, timeout_s=1.0
            )

        async with state("right") as right, state("wrong") as wrong, state(None) as nobody:
            version = await write(right, "map", 0, b"x")
            assert await right.read("map") == Versioned(b"x", version)
            with pytest.raises(Unavailable, match="user root cannot log in"):
                await wrong.read("map")
            with pytest.raises(Unavailable, match="user name is empty"):
                await nobody.read("map")
        async with state("right", tls=None) as distrusting:
            with pytest.raises(Unavailable, match="certificate"):
                await distrusting.read("map")


async def test_a_token_that_the_server_forgot_is_renewed(tmp_path: Path) -> None:
    with RunningEtcd(tmp_path / "etcd") as etcd:
        await _enable_users(etcd.url, None)
        state = EtcdState([etcd.url], cluster="c", writer="w", user="root", password="right", timeout_s=5.0)
        async with state:
            version = await write(state, "map", 0, b"x")
            etcd.kill()  # simple tokens live in its memory
            etcd.start()
            assert await write(state, "map", version, b"y") > version


async def _enable_users(url: str, tls: ssl.SSLContext | None) -> None:
    calls = [
        ("user/add", {"name": "root", "password": "right"}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("enable", {}),
    ]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls or True)) as session:
        for path, body in calls:
            async with session.post(f"{url}/v3/auth/{path}", json=body) as response:
                assert response.status == 200, await response.text()
