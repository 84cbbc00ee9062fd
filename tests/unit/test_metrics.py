"""Metrics: what several processes count is added up, in a format that Prometheus reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from agent.metrics import Metrics, key_of, render, total


def part(size: int = 64 << 10) -> memoryview:
    return memoryview(bytearray(size))


def samples(text: str) -> dict[str, float]:
    return {
        key_of(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_of_all_processes_are_added_up() -> None:
    parts = [part(), part()]
    for each, amount in zip(parts, (2, 3), strict=True):
        Metrics(each).counter("shoal_x_total", kind="a").add(amount)
    assert samples(render(parts, {}, {}))['shoal_x_total{kind="a"}'] == 5


def test_a_process_that_starts_again_goes_on_counting() -> None:
    one = part()
    Metrics(one).counter("shoal_x_total").add(4)
    Metrics(one).counter("shoal_x_total").add(1)
    assert samples(render([one], {}, {}))["shoal_x_total"] == 5


def test_a_histogram_is_cumulative() -> None:
    one = part()
    histogram = Metrics(one).histogram("shoal_s", (0.1, 1.0, 10.0), collection="c")
    for value in (0.05, 0.1, 0.5, 99.0):
        histogram.observe(value)
    found = samples(render([one], {}, {}))
    assert found['shoal_s_bucket{collection="c",le="0.1"}'] == 2
    assert found['shoal_s_bucket{collection="c",le="1"}'] == 3
    assert found['shoal_s_bucket{collection="c",le="10"}'] == 3
    assert found['shoal_s_bucket{collection="c",le="+Inf"}'] == 4
    assert found['shoal_s_count{collection="c"}'] == 4


def test_a_hostile_label_stays_a_label() -> None:
    one = part()
    Metrics(one).counter("shoal_x_total", collection='a"\n\\b').add()
    (family,) = text_string_to_metric_families(render([one], {}, {}))
    assert family.samples[-1].labels == {"collection": 'a"\n\\b'}


def test_label_sets_beyond_the_room_are_counted_together() -> None:
    one = part(1024)
    metrics = Metrics(one)
    for n in range(100):
        metrics.counter("shoal_x_total", collection=f"c{n}").add()
    assert sum(samples(render([one], {}, {})).values()) == 100


def test_one_sample_is_summed_over_processes_and_labels() -> None:
    parts = [part(), part(), part()]
    Metrics(parts[0]).counter("shoal_x", kind="a").add(2)
    Metrics(parts[0]).counter("shoal_x_more", kind="a").add(100)
    Metrics(parts[1]).counter("shoal_x", kind="b").add(3)
    Metrics(parts[1]).counter("shoal_x").add(4)
    assert total(parts, "shoal_x") == 9
