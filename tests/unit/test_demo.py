"""The demo: its texts, its embedding, its arithmetic, and the whole of it as a person runs it."""

from __future__ import annotations

import os
import pty
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from console.demo.embedding import Embedder, fit
from console.demo.measuring import quantile, recall
from console.demo.rest import Hit
from console.demo.texts import Text, standard_library_texts
from core.errors import ExitCode
from tests.running import processes
from tests.running.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return standard_library_texts(20_000)


@pytest.fixture(scope="module")
def embedder(texts: list[Text]) -> Embedder:
    return fit([text.text for text in texts[::4]], dimensions=32)


def test_this_python_has_some_thousand_texts_no_two_alike(texts: list[Text]) -> None:
    assert len(texts) > 2000
    assert len({text.text for text in texts}) == len(texts)
    assert all(text.text.strip() and text.module == text.name.split(".")[0] for text in texts)


def test_the_texts_are_those_that_help_shows(texts: list[Text]) -> None:
    by_name = {text.name: text.text for text in texts}
    assert by_name["subprocess.CompletedProcess"].startswith("A process that has finished running.")
    assert subprocess.CompletedProcess.__doc__ is not None


def test_only_public_modules_are_read_and_none_is_imported(texts: list[Text]) -> None:
    assert not any(part.startswith("_") for text in texts for part in text.name.split(".")[:-1])
    assert "antigravity" not in sys.modules


def test_fewer_texts_are_an_even_choice(texts: list[Text]) -> None:
    few = standard_library_texts(100)
    assert len(few) == 100
    assert few[0] == texts[0]
    assert len({text.module for text in few}) > 20


def test_vectors_have_length_one_and_are_the_same_each_time(texts: list[Text], embedder: Embedder) -> None:
    sample = [text.text for text in texts[:50]]
    vectors = embedder.embed(sample)
    assert vectors.shape == (50, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again = fit([text.text for text in texts[::4]], dimensions=32)
    np.testing.assert_array_equal(again.axes, embedder.axes)


def test_unknown_words_alone_make_a_zero_vector(embedder: Embedder) -> None:
    assert not embedder.embed(["xyzzy plugh"]).any()


def test_the_svd_finds_the_directions_that_numpy_finds() -> None:
    words = "alpha beta gamma delta epsilon zeta theta iota kappa lambda".split()  # noqa: SIM905 - reads better
    random = np.random.default_rng(7)
    texts = [" ".join(random.choice(words, size=2)) for _ in range(60)]
    embedder = fit(texts, dimensions=3)
    whole = fit(texts, dimensions=len(words))
    weights = whole.embed(texts) @ whole.axes.T  # with all directions nothing is lost
    _u, _s, right = np.linalg.svd(weights, full_matrices=False)
    np.testing.assert_allclose(np.abs(right[:3] @ embedder.axes), np.eye(3), atol=1e-2)


def test_texts_about_one_thing_lie_close(embedder: Embedder) -> None:
    compress, again, other = embedder.embed(["compress a file", "files, compressed", "send an email message"])
    assert compress @ again > 0.9 > 0.5 > compress @ other


def hits(*scores: float) -> list[Hit]:
    return [Hit(number, score, {}) for number, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((0.9, 0.8), 1.0),
        ((0.9, 0.7), 0.5),
        ((0.9,), 0.5),
        ((), 0.0),
        ((0.8, 0.8), 1.0),
        ((0.9, 0.8, 0.8), 1.0),
    ],
)
def test_recall_counts_what_scores_as_well_as_the_exact_answers(
    found: tuple[float, ...], expected: float
) -> None:
    assert recall(hits(*found), hits(0.9, 0.8)) == expected


def test_a_quantile_is_one_of_the_values() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert quantile(values, 0.5) == 51
    assert quantile(values, 0.99) == 100
    assert quantile([3.0], 0.99) == 3


@pytest.fixture
def tag() -> Iterator[str]:
    """Marks all processes that a demo starts; none may be left after the test."""
    tag = secrets.token_hex(8)
    yield tag
    for process in processes.tagged(tag):
        process.kill()


def _demo(tag: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", "demo", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), processes.TAG: tag},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(180)
def test_the_demo_ends_by_itself_with_real_hits_and_numbers(tag: str, tmp_path: Path) -> None:
    demo = _demo(tag, tmp_path)
    out, _ = demo.communicate(timeout=150)
    assert demo.returncode == ExitCode.OK, out
    assert "Traceback" not in out
    assert re.search(r"“open a web page in a browser”\n +0\.\d{3} +webbrowser\.", out), out
    assert re.search(r"“write a line of values”, only in csv\n( +0\.\d{3} +csv\.?\S*: .*\n){3}", out), out
    measured = re.search(
        r"Measured: ([\d,]+) points; 200 searches .* recall@10 (\d\.\d{3}) .* p50 [\d.]+ ms", out
    )
    assert measured, out
    assert int(measured[1].replace(",", "")) > 2000
    assert float(measured[2]) >= 0.95
    _check_failover(out)
    assert processes.tagged(tag) == []
    assert list(tmp_path.iterdir()) == []


def _check_failover(out: str) -> None:
    killed = re.search(r"Killed (n\d) with SIGKILL after ([\d,]+) acknowledged writes\.", out)
    assert killed, out
    node, before = killed[1], int(killed[2].replace(",", ""))
    again = re.search(r"Failover: ([\d.]+) s from the kill .* Primaries now: (.*)\.", out)
    assert again, out
    assert 0 < float(again[1]) < 10
    assert node not in again[2]
    assert re.search(rf"Started {node} again: ready after [\d.]+ s, in sync again on all 4 shards", out), out
    read = re.search(r"Read back all ([\d,]+) acknowledged writes through each node: 0 lost", out)
    assert read, out
    assert int(read[1].replace(",", "")) > before > 0, "writes went on after the kill"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "last",
    [
        b"\x03",
        pytest.param(b"\n", marks=pytest.mark.long),
        pytest.param(b"\x04", marks=pytest.mark.long),
    ],
    ids=["Ctrl-C", "empty line", "Ctrl-D"],
)
def test_on_a_terminal_it_takes_further_questions_until_it_is_told_to_end(
    last: bytes, tag: str, tmp_path: Path
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), processes.TAG: tag}
        os.execve(sys.executable, [sys.executable, "-m", "shoal", "demo", "--texts", "1000"], environ)
    try:
        _read_until(terminal, b"\r\n? ")
        os.write(terminal, b"pick a random element of a list\n")
        assert re.search(rb" 0\.\d{3}  random\.", _read_until(terminal, b"\r\n? "))
        os.write(terminal, b"xyzzy plugh\n")
        assert b"None of these words" in _read_until(terminal, b"\r\n? ")
        os.write(terminal, b"k\n")
        _check_failover(_read_until(terminal, b"\r\n? ").decode().replace("\r\n", "\n"))
        out = _read_until(terminal, b"The nodes are stopped", again=last)
        assert b"Traceback" not in out
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)
    assert processes.tagged(tag) == []


def _read_until(terminal: int, end: bytes, again: bytes = b"") -> bytes:
    """What comes up to `end`; `again` is typed now, and when nothing has come for a second.

    A Ctrl-C in the instant before Python begins to read is only noticed with the next one.
    """
    seen, deadline_s = b"", time.monotonic() + 120
    os.write(terminal, again)
    while end not in seen:
        assert time.monotonic() < deadline_s, f"{end!r} did not come in time; this came: {seen!r}"
        if not select.select([terminal], [], [], 1)[0]:
            os.write(terminal, again)
            continue
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # so ends a terminal whose last process has ended
            pytest.fail(f"{end!r} never came; this came: {seen!r}")
    return seen


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("number", "status", "after"),
    [
        (signal.SIGTERM, 128 + signal.SIGTERM, "Read "),
        pytest.param(signal.SIGINT, ExitCode.INTERRUPTED, "Killed n", marks=pytest.mark.long),
    ],
    ids=["SIGTERM at the start", "Ctrl-C while a node is dead"],
)
def test_a_demo_that_is_interrupted_stops_its_nodes(
    number: signal.Signals, status: int, after: str, tag: str, tmp_path: Path
) -> None:
    demo = _demo(tag, tmp_path, "--texts", "500")
    assert demo.stdout is not None
    seen = ""
    while after not in seen:
        line = demo.stdout.readline()
        assert line, seen
        seen += line
    demo.send_signal(number)
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == status, seen + out
    assert "Traceback" not in out
    assert processes.tagged(tag) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(100)
def test_a_demo_that_is_killed_takes_its_nodes_with_it(tag: str, tmp_path: Path) -> None:
    demo = _demo(tag, tmp_path, "--texts", "500")
    wait_until(lambda: len(processes.tagged(tag)) > 8, within_s=30)
    demo.kill()
    demo.communicate(timeout=10)
    wait_until(lambda: not processes.tagged(tag), within_s=60)


def test_a_node_that_does_not_start_is_told_with_what_it_said(tag: str, tmp_path: Path) -> None:
    broken = tmp_path / "agent"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "main.py").write_text("raise SystemExit('no disk for you')\n")
    demo = subprocess.run(
        [sys.executable, "-m", "shoal", "demo", "--texts", "100"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "TMPDIR": str(tmp_path), processes.TAG: tag},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert demo.returncode == ExitCode.REFUSED
    assert "no disk for you" in demo.stderr
    assert processes.tagged(tag) == []
