"""What an agent needs of its machine, checked before it starts: system, file system, descriptors, room."""

from __future__ import annotations

import os
import resource
import shutil
import sys

from core.config import AgentConfig, NodeConfig
from core.errors import StartRefused

DESCRIPTORS_WANTED = 65_536
DESCRIPTORS_MIN = 1_024
FILE_BYTES_MIN = 1 << 30
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"}


def refuse_foreign_system() -> None:
    """Raises StartRefused on anything but Linux: memfd, fallocate, PR_SET_PDEATHSIG are needed."""
    if not sys.platform.startswith("linux"):
        raise StartRefused(
            f"the agent runs on Linux only (this is {sys.platform}): it needs memfd, fallocate and "
            "process death signals; use a Linux machine or container"
        )


def check(data_dir: str, agent: AgentConfig) -> list[str]:
    """Make the data folder, raise the descriptor limit; returns warnings, raises StartRefused."""
    try:
        os.makedirs(data_dir, mode=0o750, exist_ok=True)
    except OSError as problem:
        raise StartRefused(f"cannot make the data folder {data_dir}: {problem.strerror}") from None
    kind = file_system(data_dir)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StartRefused(
            f"{data_dir} is on {kind}: locks, mapped files and fsync cannot be trusted there; "
            "use a local disk for data_dir"
        )
    warnings = _raise_descriptors() + _raise_file_size()
    free = shutil.disk_usage(data_dir).free
    if free < agent.disk_low_water.of(shutil.disk_usage(data_dir).total):
        warnings.append(
            f"only {free >> 20} MiB are free for {data_dir}: writes are refused until there is room"
        )
    return warnings


def file_system(path: str) -> str:
    """The type of the file system that holds `path`, by /proc/self/mountinfo; "" if unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2] == wanted:
                return rest.split()[0]
    return ""


def _raise_descriptors() -> list[str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS_MIN:
        raise StartRefused(
            f"at most {soft} open files are allowed, {DESCRIPTORS_MIN} are needed: raise ulimit -n"
        )
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS_WANTED:
        return [
            f"at most {soft} open files are allowed; for many clients or shards raise ulimit -n (LimitNOFILE)"
        ]
    return []


def _raise_file_size() -> list[str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return []
    # A file of slots only grows, also where most of it is holes.
    remedy = "raise ulimit -f (LimitFSIZE)"
    if hard < FILE_BYTES_MIN:
        raise StartRefused(f"files may have {hard} bytes at most, {FILE_BYTES_MIN} are needed: {remedy}")
    return [f"files may have {hard >> 20} MiB at most; shards that outgrow it refuse writes: {remedy}"]


def front_count(asked: int | None) -> int:
    """One front on up to two cores, else one less than the cores, unless the file says."""
    if asked is not None:
        return asked
    return max(1, len(os.sched_getaffinity(0)) - 1)


def url(node: NodeConfig, *, tls: bool) -> str:
    return f"{'https' if tls else 'http'}://{node.address}"
