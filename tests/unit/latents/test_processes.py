import time
from collections.abc import Callable, Generator

import numpy as np
import pytest

from vibevoice_finetune.audio.source import AudioError
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.latents import processes as room
from vibevoice_finetune.latents.processes import Failed, Ranks, Step, Together
from vibevoice_finetune.latents.progress import FillProgress

SILENT = AudioError("row 3: silent", "silent audio")


def ignore(_error: DataError, _reason: str) -> None:
    pass


def together(gather: Callable[[room._Message], list[room._Message]], world_size: int = 2) -> Together:
    return Together(Ranks(0, world_size, gather), ignore, FillProgress(shown=False))


def steps(count: int, sec: float = 0.0) -> Generator[Step, None, None]:
    for _ in range(count):
        time.sleep(sec)
        yield Step(done=1, audio_sec=2.0)


def test_the_sum_is_over_all_and_ends_when_the_last_is_through() -> None:
    others = [
        room._Message(Step(done=5, failures=(Failed((3, 8), SILENT),)), finished=False, error=None),
        room._Message(Step(done=1), finished=False, error=None),
        room._Message(Step(done=2), finished=True, error=None),
    ]
    crew = together(lambda own: [own, others.pop(0)])
    assert crew.run("testing", 11, steps(3)) == Step(done=11, audio_sec=6.0, failures=(Failed((3, 8), SILENT),))
    assert others == []
    assert crew.failures == {3: SILENT, 8: SILENT}


def test_ranks_meet_while_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits in a collective call much longer than the interval, however uneven the work is."""
    monkeypatch.setattr(room, "MEET_EVERY_SEC", 0.05)
    meetings = [time.monotonic()]

    def gather(own: room._Message) -> list[room._Message]:
        meetings.append(time.monotonic())
        return [own, room._Message(Step(0), finished=True, error=None)]

    assert together(gather).run("testing", 50, steps(50, 0.01)).done == 50
    assert len(meetings) > 5  # 0.5 s of work
    assert max(np.diff(meetings)) < 1.0


def test_another_s_error_is_raised_here_and_the_work_is_closed() -> None:
    closed = []

    def work() -> Generator[Step, None, None]:
        try:
            yield from steps(1_000, 0.001)
        finally:
            closed.append(True)

    error = UserError("the disk of the other is full")
    crew = together(lambda own: [own, room._Message(Step(0), finished=True, error=error)])
    with pytest.raises(UserError, match="the disk of the other is full"):
        crew.run("testing", 1, work())
    assert closed == [True]


def test_own_error_reaches_the_others() -> None:
    heard: list[room._Message] = []

    def gather(own: room._Message) -> list[room._Message]:
        heard.append(own)
        return [own, room._Message(Step(0), finished=False, error=None)]

    def work() -> Generator[Step, None, None]:
        yield Step(done=1)
        raise UserError("my disk is full")

    with pytest.raises(UserError, match="my disk is full"):
        together(gather).run("testing", 1, work())
    assert [str(message.error) for message in heard] == ["my disk is full"]


def test_a_defect_passes_as_it_is() -> None:
    def work() -> Generator[Step, None, None]:
        yield Step(done=1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together(lambda own: [own], world_size=1).run("testing", 1, work())
