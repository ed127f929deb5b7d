from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from bench.dataplane.meter import Gone, Meter, process_cpu_s


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_cpu_of_threads_that_have_ended_counts() -> None:
    meter = Meter({"self": (os.getpid(),)})
    with meter.spent() as spent:
        thread = threading.Thread(target=burn, args=(0.005,))
        thread.start()
        thread.join()
    assert 0.005 <= spent.cpu_s["self"] < 1


def test_the_clock_of_a_process_is_that_which_it_reads_itself() -> None:
    before = time.process_time()
    assert before <= process_cpu_s(os.getpid()) <= time.process_time()


def test_memory_is_that_of_the_process() -> None:
    memory = Meter({"self": (os.getpid(),)}).memory()["self"]
    assert 1_000_000 < memory.rss <= memory.peak_rss
    assert memory.pss is None or memory.pss <= memory.rss


def test_a_process_that_has_ended_is_no_figure() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(Gone):
        Meter({"child": (child.pid,)}).cpu_s()
