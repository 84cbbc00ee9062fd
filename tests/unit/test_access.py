"""Keys and roles: who is let in, with what, and how keys are rotated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.front.access import Keys, Role, presented_key, require
from core.config import read_config
from core.errors import Forbidden, StartRefused, Unauthorized

_FILE = """
[cluster]
name = "t"
data_dir = "data"
{keys}
[[nodes]]
id = "n1"
address = "127.0.0.1:6333"
"""


def keys(tmp_path: Path, **files: str) -> Keys:
    lines: list[str] = []
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        lines.append(f'{name}_file = "{tmp_path / name}"')
    text = _FILE.format(keys="\n".join(lines))
    return Keys(read_config(text, folder=str(tmp_path), environ={}))


def test_without_key_files_everybody_may_do_everything(tmp_path: Path) -> None:
    assert keys(tmp_path).role(None) == (Role.ADMIN, "anonymous")


@pytest.mark.parametrize(
    ("presented", "role"),
    [("read-only-1", Role.READ), ("full-key-1", Role.FULL), ("admin-key-1", Role.ADMIN)],
)
def test_each_key_has_the_role_of_its_file(tmp_path: Path, presented: str, role: Role) -> None:
    found = keys(tmp_path, read_only_api_key="read-only-1", api_key="full-key-1", admin_key="admin-key-1")
    assert found.role(presented)[0] is role


def test_without_an_admin_key_the_full_key_is_admin(tmp_path: Path) -> None:
    assert keys(tmp_path, api_key="full-key-1").role("full-key-1")[0] is Role.ADMIN


@pytest.mark.parametrize("presented", [None, "", "wrong", "full-key-1 ", "full-key-"])
def test_no_key_or_a_wrong_one_is_refused(tmp_path: Path, presented: str | None) -> None:
    with pytest.raises(Unauthorized):
        keys(tmp_path, api_key="full-key-1\n").role(presented)


def test_an_old_and_a_new_key_are_both_valid_while_they_are_rotated(tmp_path: Path) -> None:
    found = keys(tmp_path, api_key="old-key-111\n")
    (tmp_path / "api_key").write_text("old-key-111\nnew-key-222\n")
    os.utime(tmp_path / "api_key", ns=(1, 1))
    assert found.reload()
    assert found.role("old-key-111")[0] is found.role("new-key-222")[0]
    (tmp_path / "api_key").write_text("new-key-222\n")
    os.utime(tmp_path / "api_key", ns=(2, 2))
    assert found.reload()
    with pytest.raises(Unauthorized):
        found.role("old-key-111")


@pytest.mark.parametrize("content", ["", "\n\n", "short\n", "# only a comment\n"])
def test_an_empty_or_weak_key_file_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(StartRefused, match="api_key"):
        keys(tmp_path, api_key=content)


def test_a_file_that_became_unreadable_leaves_the_former_keys(tmp_path: Path) -> None:
    found = keys(tmp_path, api_key="full-key-1")
    (tmp_path / "api_key").unlink()
    with pytest.raises(StartRefused):
        found.reload()
    assert found.role("full-key-1")[0] is Role.ADMIN


@pytest.mark.parametrize(
    ("api_key", "authorization", "expected"),
    [
        ("k", None, "k"),
        (None, "Bearer k", "k"),
        (None, "bearer k", "k"),
        ("a", "Bearer b", "a"),
        (None, "Basic k", None),
        (None, None, None),
    ],
)
def test_the_key_is_found_in_either_header(
    api_key: str | None, authorization: str | None, expected: str | None
) -> None:
    assert presented_key(api_key, authorization) == expected


@pytest.mark.parametrize(("role", "needed", "allowed"), [(a, b, a >= b) for a in Role for b in Role])
def test_a_higher_role_may_do_what_a_lower_one_may(role: Role, needed: Role, allowed: bool) -> None:
    if allowed:
        require(role, needed, "this")
    else:
        with pytest.raises(Forbidden, match="this"):
            require(role, needed, "this")


def test_a_pipe_as_a_key_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "api_key"
    os.mkfifo(path)
    config = read_config(_FILE.format(keys=f'api_key_file = "{path}"'), folder=str(tmp_path), environ={})
    with pytest.raises(StartRefused, match="api_key is not a regular file"):
        Keys(config)
