"""Finds cluster.toml, reads it, and looks whether the files that it names are there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.config import ClusterConfig, read_config
from core.errors import ConfigInvalid

_SEARCHED = (Path("cluster.toml"), Path("/etc/shoal/cluster.toml"))


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config and the file that it came from."""

    path: Path
    config: ClusterConfig


def load(given: Path | None) -> LoadedConfig:
    """The config of the file given, or found. Raises ConfigInvalid."""
    path = _found(given)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path}: not UTF-8 at byte {error.start}; TOML is always UTF-8") from None
    folder = str(path.absolute().parent)
    return LoadedConfig(path, read_config(text, folder=folder, environ=os.environ, source=str(path)))


def check_files(loaded: LoadedConfig) -> None:
    """Raises ConfigInvalid naming each key and certificate file that can't be read."""
    config = loaded.config
    named = {
        "cluster.api_key_file": config.api_key_file,
        "cluster.read_only_api_key_file": config.read_only_api_key_file,
        "cluster.admin_key_file": config.admin_key_file,
        "cluster.secret_file": config.secret_file,
    }
    if config.tls is not None:
        named |= {"tls.cert": config.tls.cert, "tls.key": config.tls.key, "tls.ca": config.tls.ca}
    mistakes = [
        f"{loaded.path}: {key}: {reason}"
        for key, path in named.items()
        if path is not None and (reason := _why_unreadable(path))
    ]
    if mistakes:
        raise ConfigInvalid("\n".join(mistakes))


def _found(given: Path | None) -> Path:
    if given is not None:
        return given
    if named := os.environ.get("SHOAL_CONFIG"):
        return Path(named)
    for path in _SEARCHED:
        if path.exists():
            return path
    places = " and ".join(str(path) for path in _SEARCHED)
    raise ConfigInvalid(
        f"no cluster.toml: looked for {places}. Name one with --config or SHOAL_CONFIG; "
        "sample-cluster.toml is a good beginning"
    )


def _why_unreadable(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return None if file.read(1) else f"{path} is empty"
    except OSError as error:
        return f"{path}: {error.strerror}"
