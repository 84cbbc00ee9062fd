"""What an agent needs of its machine: refused in words where it is too little."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (min(limit, 1 << 20), limit))
from agent.machine import check
from core.config import AgentConfig
from core.errors import StartRefused
try:
    print(*check(sys.argv[2], AgentConfig()), resource.getrlimit(resource.RLIMIT_FSIZE)[0])
except StartRefused as refused:
    print("refused:", refused)
"""


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (1 << 29, "refused: files may have 536870912 bytes at most, 1073741824 are needed: raise ulimit -f"),
        (1 << 31, "files may have 2048 MiB at most; shards that outgrow it refuse writes"),
    ],
)
def test_a_limit_on_file_sizes_is_raised_and_told(limit: int, told: str, tmp_path: object) -> None:
    command = [sys.executable, "-c", LOOK, str(limit), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told in done.stdout
    assert "refused" in done.stdout or done.stdout.split()[-1] == str(limit)
