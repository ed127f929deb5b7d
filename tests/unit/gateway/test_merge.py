"""Several metrics pages made one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.merge import merge


def page(requests: dict[str, int], in_flight: int, durations_s: list[float], started: float = 0.0) -> str:
    registry = CollectorRegistry()
    counter = Counter("requests", "Requests.", ["code"], registry=registry)
    for code, number in requests.items():
        counter.labels(code).inc(number)
    Gauge("in_flight", "Under way.", registry=registry).set(in_flight)
    histogram = Histogram("duration", "Seconds.", buckets=(1, 2), registry=registry)
    for duration_s in durations_s:
        histogram.observe(duration_s)
    Gauge("process_start_time_seconds", "Start.", registry=registry).set(started)
    Gauge("python_info", "Python.", ["version"], registry=registry).labels("3").set(1)
    return generate_latest(registry).decode()


def samples(merged: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(merged.decode())
        for sample in family.samples
    }


def test_counters_gauges_and_histograms_add_up_label_by_label() -> None:
    merged = samples(merge([page({"200": 3, "404": 1}, 2, [0.5]), page({"200": 4}, 1, [0.5, 1.5, 9.0])]))
    assert merged["requests_total", "200"] == 7
    assert merged["requests_total", "404"] == 1
    assert merged["in_flight", ""] == 3
    assert [merged["duration_bucket", edge] for edge in ("1.0", "2.0", "+Inf")] == [2, 3, 4]
    assert merged["duration_sum", ""] == 11.5


def test_what_does_not_add_up_is_not_added() -> None:
    merged = samples(merge([page({}, 0, [], started=100.0), page({}, 0, [], started=90.0)]))
    assert merged["process_start_time_seconds", ""] == 90.0
    assert merged["python_info", "3"] == 1.0


def test_one_page_alone_says_the_same() -> None:
    alone = page({"200": 3}, 2, [0.5])
    assert samples(merge([alone])) == samples(alone.encode())
