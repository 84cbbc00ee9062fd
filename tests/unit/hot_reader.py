"""A process that searches a shard for points that another process replaces all the time."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

import numpy as np

from agent.front.reader import ShardReader
from agent.page import Page, Reads
from core.filters import Filter, MatchValue
from core.hashing import id_key
from core.payload import parse_path


def look_for(reader: ShardReader, reads: Reads, hot: list[bytes], total: int, seconds: float) -> Counter[str]:
    """Search until the time is over, and count what was wrong."""
    seen: Counter[str] = Counter()
    query = np.ones((1, 8), np.float32) / np.float32(np.sqrt(8))
    is_hot = Filter(must=(MatchValue(parse_path("hot"), True),))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with reads.held(), reader.view() as look:
            seen["looks"] += 1
            seen["unclean"] += not look.clean
            [(slots, scores)] = look.nearest(0, query, limit=len(hot), ef=None, exact=False, where=None)
            seen["plain search missed"] += sorted(look.keys(slots)) != hot
            [(exact, _)] = look.nearest(0, query, limit=len(hot), ef=None, exact=True, where=is_hot)
            seen["filtered search missed"] += sorted(look.keys(exact)) != hot
            seen["not in order"] += bool((np.diff(scores) > 0).any())
            seen["count wrong"] += look.count(None) != total
            seen["filtered count wrong"] += look.count(is_hot) != len(hot)
            seen["payload of another"] += any(b"true" not in p for p in look.payloads(slots))
            seen["row of another"] += bool((look.rows(0, slots) @ query[0] < 0.9).any())
    return seen


def main() -> None:
    folder, page_fd, place, hot, total, seconds = sys.argv[1:]
    page = Page(int(page_fd))
    reader, reads = ShardReader(folder, page, 0), Reads(page, int(place))
    seen = look_for(reader, reads, [bytes(id_key(n)) for n in range(int(hot))], int(total), float(seconds))
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
