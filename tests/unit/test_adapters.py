"""Which adapters a worker is believed to have loaded, and what loading another costs."""

from __future__ import annotations

import pytest

from lbcore.adapters import MOST_LOAD_MS, PRIOR_LOAD_MS, LoadedAdapters, Loading


def test_an_adapter_has_to_be_loaded_once() -> None:
    adapters = LoadedAdapters(2)
    assert adapters.loading("a", 0.0) == Loading(PRIOR_LOAD_MS, 0.0)
    adapters.use("a")
    assert adapters.loading("a", 0.0) is None


def test_where_all_slots_are_taken_another_will_have_to_be_loaded_again() -> None:
    adapters = LoadedAdapters(2)
    adapters.use("a")
    assert adapters.loading("c", 0.0) == Loading(PRIOR_LOAD_MS, 0.0)
    adapters.use("b")
    assert adapters.loading("c", 0.0) == Loading(PRIOR_LOAD_MS, PRIOR_LOAD_MS)


def test_the_one_that_was_used_least_recently_makes_room() -> None:
    adapters = LoadedAdapters(2)
    for name in ("a", "b", "a", "c"):
        adapters.use(name)
    assert [name for name in "abc" if adapters.loading(name, 0.0)] == ["b"]


def test_a_worker_that_names_no_slots_has_nothing_to_load() -> None:
    adapters = LoadedAdapters(0)
    adapters.use("a")
    assert adapters.loading("b", 0.0) is None


def test_the_time_is_learned() -> None:
    adapters = LoadedAdapters(1)
    for second in range(20):
        adapters.took(900.0, float(second))
    loading = adapters.loading("a", 20.0)
    assert loading is not None
    assert 800 < loading.own_ms < 900


@pytest.mark.parametrize(("seen", "counted"), [(-50.0, -50.0), (1e9, MOST_LOAD_MS)])
def test_what_cannot_be_the_loading_counts_within_bounds(seen: float, counted: float) -> None:
    adapters = LoadedAdapters(1)
    adapters.took(seen, 0.0)
    loading = adapters.loading("a", 0.0)
    assert loading is not None
    assert loading.own_ms == pytest.approx((2 * PRIOR_LOAD_MS + counted) / 3)
