"""What the store tells the fronts of one shard: its record in the page, changed field by field."""

from __future__ import annotations

import threading

from agent.page import Page, ShardPlaces, ShardRecord


class Publisher:
    """Owns one shard's record. Fields change from the loop and from the apply thread, hence the lock."""

    def __init__(self, page: Page, places: ShardPlaces, collection: int, shard: int) -> None:
        self._page = page
        self._places = places
        self._place = places.place(collection, shard)
        self._lock = threading.Lock()
        self._is_closed = False
        self.record = ShardRecord(collection=collection, shard=shard)

    def update(self, *, on: int = 0, off: int = 0, **fields: int) -> None:
        """Publish the record with these fields and flags changed, all at once."""
        with self._lock:
            self.record = self.record._replace(flags=(self.record.flags | on) & ~off)._replace(**fields)
            if not self._is_closed:  # its place may be another shard's
                self._page.write_shard(self._place, self.record)

    def set_flags(self, on: int = 0, off: int = 0) -> None:
        self.update(on=on, off=off)

    def oldest_read_ns(self) -> int | None:
        """When the oldest read that is under way, of any process, began."""
        return self._page.oldest_read_ns()

    def begin_edit(self) -> None:
        """Columns of published slots are about to change; what they say is void until `end_edit`."""
        if self.record.edits % 2 == 0:
            self.update(edits=self.record.edits + 1)

    def end_edit(self) -> None:
        if self.record.edits % 2 == 1:
            self.update(edits=self.record.edits + 1)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
        self._places.release(self.record.collection, self.record.shard)
