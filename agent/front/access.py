"""Who may do what: keys by their hashes, roles, and the one check that every request passes."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass
from enum import IntEnum

from core.config import ClusterConfig
from core.errors import Forbidden, StartRefused, Unauthorized

KEY_CHARS_MIN = 8


class Role(IntEnum):
    """What a key, or a route, stands for; a higher role may do all that a lower one may."""

    NOBODY = 0
    READ = 1
    FULL = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a key file. The key itself is forgotten; `name` is for events and logs."""

    digest: bytes
    role: Role
    name: str


class Keys:
    """The keys of this cluster, read from their files again when these change."""

    def __init__(self, config: ClusterConfig) -> None:
        full_is_admin = config.admin_key_file is None
        self._files = [
            (path, role)
            for path, role in (
                (config.read_only_api_key_file, Role.READ),
                (config.api_key_file, Role.ADMIN if full_is_admin else Role.FULL),
                (config.admin_key_file, Role.ADMIN),
            )
            if path is not None
        ]
        self._seen: list[tuple[int, int]] = []
        self._keys: tuple[Key, ...] = ()
        self.reload()

    @property
    def required(self) -> bool:
        return bool(self._files)

    def reload(self) -> bool:
        """Read the files if one changed; several lines of a file are all valid, so that keys can be
        rotated. Raises StartRefused for a missing or weak key; then the former keys stay."""
        seen = [_stamp(path) for path, _ in self._files]
        if seen == self._seen:
            return False
        keys = [key for path, role in self._files for key in _read(path, role)]
        self._keys, self._seen = tuple(keys), seen
        return True

    def role(self, presented: str | None) -> tuple[Role, str]:
        """The role and the name of a key. Raises Unauthorized; without key files all may do all."""
        if not self._files:
            return Role.ADMIN, "anonymous"
        if not presented:
            raise Unauthorized("Must provide an API key or an Authorization bearer token")
        digest = _digest(presented)
        found: Key | None = None
        for key in self._keys:  # all of them: the time must not tell which one matched
            if hmac.compare_digest(key.digest, digest) and (found is None or key.role > found.role):
                found = key
        if found is None:
            raise Unauthorized("Invalid API key or bearer token")
        return found.role, found.name


def require(role: Role, needed: Role, what: str) -> None:
    """Raises Forbidden if `role` may not do what needs `needed`."""
    if role < needed:
        raise Forbidden(
            f"{what} needs a key with the role {needed.name.lower()}; this one is {role.name.lower()}"
        )


def presented_key(api_key: str | None, authorization: str | None) -> str | None:
    """The key in the header `api-key`, else in `Authorization: Bearer`."""
    if api_key:
        return api_key
    if authorization and authorization[:7].lower() == "bearer ":
        return authorization[7:].strip()
    return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as problem:
        raise StartRefused(f"cannot read the key file {path}: {problem.strerror}") from None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise StartRefused(f"the key file {path} is not a regular file")
    return status.st_mtime_ns, status.st_ino


def _read(path: str, role: Role) -> list[Key]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as problem:
        raise StartRefused(f"cannot read the key file {path}: {problem}") from None
    if not lines:
        raise StartRefused(f"the key file {path} holds no key; put one on a line of its own")
    for number, line in enumerate(lines, 1):
        if len(line) < KEY_CHARS_MIN:
            raise StartRefused(
                f"key {number} in {path} has under {KEY_CHARS_MIN} characters; take a longer one"
            )
    name = os.path.basename(path)
    return [Key(_digest(line), role, f"{name}:{number}") for number, line in enumerate(lines, 1)]
