"""Strict mode's rates: a full bucket at once, then as it fills."""

from __future__ import annotations

import pytest

from agent.rates import Bucket
from core.errors import RateLimited


def test_a_full_bucket_may_be_spent_at_once_and_fills_again() -> None:
    bucket = Bucket(60, now_s=0)
    for _ in range(60):
        bucket.take(1, 0, "Write")
    with pytest.raises(RateLimited) as caught:
        bucket.take(1, 0, "Write")
    assert caught.value.retry_after_s == 1
    bucket.take(1, 1.0, "Write")


def test_the_answer_says_how_long_to_wait() -> None:
    bucket = Bucket(60, now_s=0)
    bucket.take(60, 0, "Read")
    with pytest.raises(RateLimited) as caught:
        bucket.take(30, 10, "Read")
    assert caught.value.retry_after_s == 20


def test_a_request_over_the_whole_limit_need_not_be_tried_again() -> None:
    with pytest.raises(RateLimited) as caught:
        Bucket(10, now_s=0).take(11, 0, "Write")
    assert caught.value.retry_after_s is None
