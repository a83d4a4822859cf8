"""Signals that ask a run to stop: the step under way is finished, then the trainer saves and ends."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType


class StopRequest:
    """Whether SIGTERM, SIGINT or SIGHUP has asked the run to stop after the current step."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; after the first one, a second one acts as it did before.

        SIGHUP comes when a terminal closes, often twice, from the shell and from the system. So a second one is
        ignored; and under `nohup`, where SIGHUP was ignored from the start, it stays so.
        """
        numbers = [signal.SIGTERM, signal.SIGINT]
        hangup = signal.Signals.__members__.get("SIGHUP")  # Windows has none
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            numbers.append(hangup)
        before = {number: signal.getsignal(number) for number in numbers}
        terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def note(number: int, _frame: FrameType | None) -> None:
            self.signal_name = signal.Signals(number).name
            restore()
            if hangup in before:
                signal.signal(hangup, signal.SIG_IGN)
            _leave_closed(terminals)

        for number in numbers:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()


def _leave_closed(terminals: list[int]) -> None:
    """Send what is still said to nowhere where a terminal has closed; writing to it would be an error."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def obey_parent_alone(_worker: int) -> None:
    """Let a data-loader worker go on when a signal asks the run to stop, so that the step can be finished.

    Service managers and terminals send their signals to every process of a group. Left to PyTorch, a worker would
    die of it and take the run with it. SIGTERM of its parent still ends it. For `DataLoader(worker_init_fn=…)`.
    """
    for name in ("SIGINT", "SIGHUP"):
        if name in signal.Signals.__members__:
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    Thread(target=wait, daemon=True).start()
