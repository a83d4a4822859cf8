"""Signals that ask a run to stop."""

import os
import pty
import signal
import sys
import time

import pytest

from vibevoice_finetune.training.stop import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_acts_as_before(number):
    stop = StopRequest()
    before = signal.getsignal(number)
    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop.signal_name == number.name
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_a_closed_terminal_hangs_up_twice_and_ends_nothing():
    stop = StopRequest()
    before = signal.getsignal(signal.SIGHUP)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)  # would end this process
        assert stop.signal_name == "SIGHUP"
    assert signal.getsignal(signal.SIGHUP) is before


def test_under_nohup_a_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal_name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_the_terminal_has_closed_what_is_said_goes_nowhere():
    """A child with a terminal of its own, which the parent closes: without the detour its output would be an error."""
    told, tell = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
            stop = StopRequest()
            with stop.listening():
                os.write(tell, b"r")
                while stop.signal_name is None:
                    time.sleep(0.01)
                print("step", file=sys.__stderr__, flush=True)
                os.write(2, b"still talking")
                code = 0
        finally:
            os._exit(code)
    assert os.read(told, 1) == b"r"
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
