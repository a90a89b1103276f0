"""What a worker process of a loader does when the scheduler signals every process of a job."""

import multiprocessing
import os
import signal
import threading


def obey_parent_only() -> None:
    """Let SIGTERM end this worker only when it comes from its parent, and SIGUSR1 never.

    SLURM's `scancel` and time limit signal every process of a step. A worker that ended of that would fail the step
    that its parent is about to finish and save; one that ignored SIGTERM would outlive the `terminate` of its parent.
    A signal handler in Python is not told who sent the signal, a thread that waits for it is.

    Nothing is changed in a process that is no such worker, and where signals cannot be waited for so (macOS, Windows).
    """
    parent = multiprocessing.parent_process()  # not os.getppid(), which may be a fork server
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        return
    # Threads inherit the mask: blocked in all of them, the signals are left for the one that waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    threading.Thread(target=_wait_for, args=(parent.pid,), daemon=True, name="signals").start()


def _wait_for(parent: int | None) -> None:
    while True:
        received = signal.sigwaitinfo({signal.SIGTERM, signal.SIGUSR1})
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)  # as torch's own workers do
