"""What signal handlers and worker processes do."""

import os
import signal
import threading
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection

from biocnn.data.worker_signals import obey_parent_only
from biocnn.training.preemption import stop_request


def test_first_signal_is_noted_and_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with stop_request() as request:
        assert request.signal == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGUSR1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_other_threads_set_no_handlers() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with stop_request() as request:
            found.append((request.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(0, before)]


def worker(connection: Connection) -> None:
    obey_parent_only()
    connection.send("ready")
    while True:
        connection.send(connection.recv())


def signal_from_elsewhere(pid: int, number: int) -> None:
    """As a batch system does: from a process that is not the parent of the one that is signalled."""
    if (sender := os.fork()) == 0:
        os.kill(pid, number)
        os._exit(0)
    os.waitpid(sender, 0)


def test_worker_obeys_its_parent_only() -> None:
    context = get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=worker, args=(its,), daemon=True)
    process.start()
    assert process.pid is not None
    assert mine.recv() == "ready"
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal_from_elsewhere(process.pid, number)
        mine.send(int(number))
        assert mine.recv() == number  # still at work
    start = time.monotonic()
    process.terminate()
    process.join(30)
    assert process.exitcode == 0
    assert time.monotonic() - start < 30
