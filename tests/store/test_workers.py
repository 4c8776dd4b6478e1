"""Workers: results come in order, a failure drops what has not begun, and memory is each thread's own."""

import threading
import time

import pytest

from arstore.store.workers import ThreadBuffers, open_pool, run_all


def test_results_come_in_the_order_of_their_tasks() -> None:
    def perform(task: int) -> int:
        time.sleep(0.002 * (5 - task))  # the last task is done first
        return task * task

    assert run_all(perform, range(5), workers=5) == [0, 1, 4, 9, 16]
    assert run_all(perform, []) == []


def test_tasks_are_shared_and_a_single_one_stays_on_this_thread() -> None:
    together = threading.Barrier(3, timeout=10)
    run_all(lambda task: together.wait(), range(3), workers=3)  # breaks unless all three run at once
    assert run_all(lambda task: threading.get_ident(), ["one"]) == [threading.get_ident()]


def test_a_failure_is_raised_and_tasks_that_have_not_begun_are_dropped() -> None:
    begun: list[int] = []

    def perform(task: int) -> None:
        begun.append(task)
        if task == 0:
            raise KeyError("first")
        time.sleep(0.01)

    with pytest.raises(KeyError, match="first"):
        run_all(perform, range(1000), workers=2)
    assert len(begun) < 500


def test_a_pool_waits_for_tasks_that_have_begun() -> None:
    begun, done = threading.Event(), threading.Event()

    def perform() -> None:
        begun.set()
        time.sleep(0.05)
        done.set()

    with open_pool(1) as pool:
        pool.submit(perform)
        assert begun.wait(10)
        dropped = pool.submit(perform)
    assert done.is_set()
    assert dropped.cancelled()


def test_a_buffer_is_used_again_by_its_thread_and_name_only() -> None:
    buffers = ThreadBuffers()
    first = buffers.take(100)
    first[:5] = b"bytes"
    assert len(first) == 100
    assert bytes(buffers.take(5)) == b"bytes"
    assert bytes(buffers.take(5, "other")) == bytes(5)

    elsewhere: list[bytes] = []
    thread = threading.Thread(target=lambda: elsewhere.append(bytes(buffers.take(5))))
    thread.start()
    thread.join()
    assert elsewhere == [bytes(5)]

    large = buffers.take(5 << 20)  # a larger one replaces it
    assert len(large) == 5 << 20
    assert bytes(large[:5]) == bytes(5)
