"""The metrics page of a gateway: plain numbers inside, Prometheus' text outside."""

from __future__ import annotations

import math

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.merge import merge
from gateway.metrics import _SECONDS, GatewayMetrics
from lbcore.errors import Saturated
from lbcore.generation import Finished

USAGE = Finished(prompt_tokens=30, cached_tokens=10, output_tokens=2)


def families(page: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page)}


def page_of(metrics: GatewayMetrics) -> str:
    return generate_latest(metrics.registry).decode()


def values(page: str, name: str) -> dict[tuple[str, ...], float]:
    """The samples of this name, by their labels' values in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    }


def buckets(page: str, name: str, route: str = "chat", model: str = "m") -> dict[float, float]:
    """A histogram: upper bound to how many were at most so large."""
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"{name}_bucket" and (sample.labels["route"], sample.labels["model"]) == (route, model)
    }


def test_a_page_without_a_request_parses_and_names_what_there_will_be() -> None:
    named = families(page_of(GatewayMetrics()))
    for name, kind in (
        ("lb_gateway_requests", "counter"),
        ("lb_gateway_ttft_seconds", "histogram"),
        ("lb_gateway_duration_seconds", "histogram"),
        ("lb_gateway_prompt_tokens", "counter"),
        ("lb_gateway_cached_prompt_tokens", "counter"),
        ("lb_gateway_output_tokens", "counter"),
        ("lb_gateway_failed_attempts", "counter"),
        ("lb_gateway_requests_in_flight", "gauge"),
    ):
        assert named[name].type == kind
        assert named[name].documentation


def test_answers_are_counted_by_route_model_and_code() -> None:
    metrics = GatewayMetrics()
    for route, model, code in [("chat", "m", 200)] * 3 + [("chat", "m", 404), ("completion", "m", 200)]:
        metrics.answered(route, model, code, 1.0, None, None)
    assert values(page_of(metrics), "lb_gateway_requests_total") == {
        ("200", "m", "chat"): 3,
        ("404", "m", "chat"): 1,
        ("200", "m", "completion"): 1,
    }


def test_buckets_are_cumulative_and_the_last_holds_all() -> None:
    metrics = GatewayMetrics()
    durations = [0.001, 0.004, 0.02, 0.3, 0.3, 7.0, 299.0, 1000.0, 1e9]
    for duration_s in durations:
        metrics.answered("chat", "m", 200, duration_s, duration_s / 2, None)
    page = page_of(metrics)
    counted = buckets(page, "lb_gateway_duration_seconds")
    assert [*counted] == [*_SECONDS, math.inf]
    assert counted == {bound: sum(duration <= bound for duration in durations) for bound in counted}
    assert [*counted.values()] == sorted(counted.values())
    key = ("m", "chat")
    assert counted[math.inf] == values(page, "lb_gateway_duration_seconds_count")[key] == len(durations)
    assert values(page, "lb_gateway_duration_seconds_sum")[key] == pytest.approx(sum(durations))
    assert values(page, "lb_gateway_ttft_seconds_count")[key] == len(durations)
    assert values(page, "lb_gateway_ttft_seconds_sum")[key] == pytest.approx(sum(durations) / 2)


@pytest.mark.parametrize("bound", _SECONDS)
def test_what_took_exactly_as_long_as_a_bound_is_within_it(bound: float) -> None:
    metrics = GatewayMetrics()
    metrics.answered("chat", "m", 200, bound, None, None)
    counted = buckets(page_of(metrics), "lb_gateway_duration_seconds")
    assert [upper for upper, count in counted.items() if count] == [*_SECONDS[_SECONDS.index(bound) :], math.inf]


def test_an_answer_without_a_token_has_no_time_to_it() -> None:
    metrics = GatewayMetrics()
    metrics.answered("chat", "m", 200, 1.0, 0.5, USAGE)
    metrics.answered("chat", "m", 503, 1.0, None, None)
    page = page_of(metrics)
    assert values(page, "lb_gateway_ttft_seconds_count") == {("m", "chat"): 1}
    assert values(page, "lb_gateway_duration_seconds_count") == {("m", "chat"): 2}


def test_tokens_add_up_by_model_over_all_routes() -> None:
    metrics = GatewayMetrics()
    for route, model in (("chat", "m"), ("completion", "m"), ("chat", "other")):
        metrics.answered(route, model, 200, 1.0, 0.5, USAGE)
    metrics.answered("chat", "m", 500, 1.0, None, None)
    page = page_of(metrics)
    assert values(page, "lb_gateway_prompt_tokens_total") == {("m",): 60, ("other",): 30}
    assert values(page, "lb_gateway_cached_prompt_tokens_total") == {("m",): 20, ("other",): 10}
    assert values(page, "lb_gateway_output_tokens_total") == {("m",): 4, ("other",): 2}


def test_a_model_s_name_may_hold_anything() -> None:
    strange = 'org/"a"\\b\nc {x="y"} é'
    metrics = GatewayMetrics()
    metrics.answered("chat", strange, 200, 1.0, 0.5, USAGE)
    assert values(page_of(metrics), "lb_gateway_requests_total") == {("200", strange, "chat"): 1}
    assert values(page_of(metrics), "lb_gateway_output_tokens_total") == {(strange,): 2}


def test_failed_attempts_are_counted_by_reason() -> None:
    metrics = GatewayMetrics()
    for _ in range(2):
        metrics.attempt_failed(Saturated("Full."))
    assert values(page_of(metrics), "lb_gateway_failed_attempts_total") == {(Saturated("").reason,): 2}


def test_the_pages_of_several_processes_add_up() -> None:
    one, two = GatewayMetrics(), GatewayMetrics()
    one.answered("chat", "m", 200, 0.02, 0.01, USAGE)
    two.answered("chat", "m", 200, 3.0, 1.0, USAGE)
    two.answered("completion", "other", 404, 0.001, None, None)
    merged = merge([page_of(one), page_of(two)]).decode()
    assert values(merged, "lb_gateway_requests_total") == {("200", "m", "chat"): 2, ("404", "other", "completion"): 1}
    counted = buckets(merged, "lb_gateway_duration_seconds")
    assert (counted[0.01], counted[0.025], counted[5.0], counted[math.inf]) == (0, 1, 2, 2)
    assert values(merged, "lb_gateway_duration_seconds_sum")[("m", "chat")] == pytest.approx(3.02)
    assert values(merged, "lb_gateway_output_tokens_total")[("m",)] == 4
    assert families(merged)["lb_gateway_duration_seconds"].type == "histogram"


def test_the_page_says_the_same_whenever_somebody_looks() -> None:
    metrics = GatewayMetrics()
    metrics.answered("chat", "m", 200, 1.0, 0.5, USAGE)
    first, second = (families(page_of(metrics))["lb_gateway_requests"].samples for _ in range(2))
    assert first == second
