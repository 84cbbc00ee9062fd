"""What the repository promises about itself: commands, locks, links, units, and the purity of core."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import console.cli.main
from core.config import read_config
from core.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("core", "net", "agent", "console")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
UNITS = ROOT / "deploy/systemd"


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pins(name: str) -> dict[str, str]:
    """All pins of a lock and of those that it builds on."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            package, pinned = line.split("==")
            found[canonicalize_name(package)] = pinned
    return found


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("build.lock", PROJECT["build-system"]["requires"]),
        ("runtime.lock", PROJECT["project"]["dependencies"]),
        ("dev.lock", PROJECT["project"]["optional-dependencies"]["dev"]),
        ("compat.lock", PROJECT["project"]["optional-dependencies"]["compat"]),
    ],
)
def test_a_lock_pins_what_pyproject_asks_for(lock: str, wanted: list[str]) -> None:
    pinned = pins(lock)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_what_is_installed_is_what_is_locked() -> None:
    for package, pinned in pins("dev.lock").items():
        assert version(package) == pinned, package


@pytest.mark.compat
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the locks are made on Python 3.11")
def test_the_locks_are_whole() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/lock.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_version_is_stated_once_and_has_its_entry_in_the_changelog() -> None:
    try:
        assert version("shoal") == VERSION
    except PackageNotFoundError:
        pytest.skip("shoal is not installed here: run make install")
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", sources("core"), ids=relative)
def test_core_reads_no_clock_draws_no_number_and_opens_nothing(path: Path) -> None:
    # Imports are import-linter's; these come with modules that core may well import.
    forbidden = {
        "open",
        "print",
        "input",
        "now",
        "utcnow",
        "today",
        "uuid1",
        "uuid4",
        "default_rng",
        "memmap",
    }
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    called = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    assert not called & forbidden


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=relative)
def test_a_file_states_its_job_or_is_empty(path: Path) -> None:
    text = path.read_text()
    if path.name == "__init__.py":
        assert text == "", "an empty __init__.py keeps `shoal --help` quick"
    else:
        assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", [*sources(*PACKAGES, "scripts"), ROOT / "shoal.py"], ids=relative)
def test_nothing_is_left_for_later(path: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError", path.read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        for command in re.findall(
            r"^ *make ([a-z -]+?) *(?:#.*)?$|`make ([a-z -]+)`", path.read_text(), re.MULTILINE
        ):
            assert set("".join(command).split()) <= targets, (path.name, command)


def test_ci_runs_the_targets_that_the_readme_names() -> None:
    readme = (ROOT / "README.md").read_text()
    steps = re.findall(r"^step make ([a-z-]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert {"lint", "types", "demo", "test", "test-long"} <= set(steps)
    assert all(re.search(rf"make [a-z -]*\b{step}\b", readme) for step in steps)


def test_every_command_that_the_readme_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    commands = set(re.findall(r"`shoal ((?:config )?[a-z]+)`", (ROOT / "README.md").read_text()))
    assert {"agent", "config check", "config show", "demo"} <= commands
    for command in commands:
        assert console.cli.main.run([*command.split(), "--help"], lambda config, node: 1) == 0
        assert f"shoal {command}" in capsys.readouterr().out


def test_the_sample_is_without_mistakes_as_it_is_and_with_every_key() -> None:
    text = (ROOT / "sample-cluster.toml").read_text()
    assert read_config(text, folder="/", environ={}).nodes[0].id == "n1"
    whole = re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    config = read_config(whole, folder="/", environ={})
    assert config.tls is not None
    assert config.agent.slow_request_ms == 1000
    mentioned = set(re.findall(r"^([a-z_]+) =", whole, re.MULTILINE))
    # What tests alone may say is not for users.
    assert {*config.__dataclass_fields__} - {"nodes", "agent", "tls", "test_dial"} <= mentioned
    assert {*config.agent.__dataclass_fields__, *config.nodes[0].__dataclass_fields__} <= mentioned


@pytest.mark.parametrize(
    ("unit", "instance"),
    [
        ("shoal-agent@.service", "shoal-agent@n1.service"),
        ("shoal-coordinator.service", "shoal-coordinator.service"),
    ],
)
def test_systemd_accepts_the_units(tmp_path: Path, unit: str, instance: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt install systemd)")
    program = Path(sys.executable).parent / "shoal"
    if not program.exists():
        pytest.skip("the shoal command is not in this environment: run make install")
    text = (UNITS / unit).read_text().replace("/opt/shoal/bin/shoal", str(program))
    assert str(program) in text
    (tmp_path / unit).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / instance],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "shoal" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize(
    ("pythons", "found"),
    [
        ({"python3": 1}, None),
        ({"python3": 1, "python3.12": 0}, "python3.12"),
        ({"python3": 0}, "python3"),
        ({}, None),
    ],
)
def test_a_python_that_fits_is_found_or_its_lack_is_told(
    tmp_path: Path, pythons: dict[str, int], found: str | None
) -> None:
    # Each stands for a Python that fits (0) or doesn't (1), and says its own name for sys.executable.
    for name, status in pythons.items():
        (tmp_path / name).write_text(
            f'#!/bin/sh\ncase $2 in *executable*) echo "{name}";; *) exit {status};; esac\n'
        )
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", ROOT / "scripts/find-python"],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    if found:
        assert (done.returncode, done.stdout) == (0, f"{found}\n")
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "needs Python 3.11 or newer" in done.stderr
        assert "apt install python3 python3-venv" in done.stderr
