import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from vibevoice_finetune.audio.source import AudioError
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.latents.processes import Failed, Processes, Step, Together
from vibevoice_finetune.latents.progress import FillProgress

SILENT = AudioError("row 3: silent", "silent audio")
Outcome = tuple[Step, UserError | None]


def together(
    folder: Path,
    gather: Callable[[Outcome], list[Outcome]],
    on_failure: Callable[[DataError, str], None] = lambda _error, _reason: None,
    count: int = 2,
) -> Together:
    names = iter(["the name of the file"])

    def first_the_name(value: Outcome) -> list[Outcome] | list[str]:
        name = next(names, None)
        return [name] if name else gather(value)

    return Together(Processes(0, count, first_the_name), on_failure, FillProgress(shown=False), folder)


def steps(count: int) -> Generator[Step, None, None]:
    for _ in range(count):
        yield Step(done=1, audio_sec=2.0)


def test_the_sum_is_over_all_processes_and_failures_are_told_once(tmp_path: Path) -> None:
    told: list[str] = []

    def work() -> Generator[Step, None, None]:
        yield from steps(2)
        yield Step(done=1, failures=(Failed((1,), SILENT),))

    other = Step(done=8, failures=(Failed((3, 8), SILENT),), changed=(5,))
    crew = together(tmp_path, lambda own: [own, (other, None)], lambda error, _: told.append(str(error)))
    total = crew.run("testing", 3, work())
    assert (total.done, total.audio_sec, total.changed) == (11, 4.0, (5,))
    assert crew.failures == {1: SILENT, 3: SILENT, 8: SILENT}
    assert told == ["row 3: silent"] * 2  # one source here, one in the other process


def test_the_same_error_ends_all_whoever_met_it(tmp_path: Path) -> None:
    first, second = UserError("the disk of the first is full"), UserError("the disk of the second is full")
    with pytest.raises(UserError, match="first"):
        together(tmp_path, lambda own: [(Step(), first), (Step(), second)]).run("testing", 1, steps(1))


def test_an_own_error_reaches_the_others_while_they_work(tmp_path: Path) -> None:
    seen: list[str] = []
    stop = tmp_path / ".stop-the name of the file"

    def gather(own: Outcome) -> list[Outcome]:
        seen.append(stop.read_text())
        return [own, (Step(), None)]

    def work() -> Generator[Step, None, None]:
        yield Step(done=1)
        raise UserError("my disk is full")

    with pytest.raises(UserError, match="my disk is full"):
        together(tmp_path, gather).run("testing", 1, work())
    assert seen == ["my disk is full"]
    assert not stop.exists()


def test_work_ends_when_another_has_failed_and_is_closed(tmp_path: Path) -> None:
    done, closed = [], []

    def work() -> Generator[Step, None, None]:
        try:
            for number in range(1_000):
                done.append(number)
                if number == 3:
                    (tmp_path / ".stop-the name of the file").write_text("no memory")
                yield Step(done=1)
        finally:
            closed.append(time.monotonic())

    crew = together(tmp_path, lambda own: [own, (Step(), UserError("no memory"))])
    with pytest.raises(UserError, match="no memory"):
        crew.run("testing", 1_000, work())
    assert done == [0, 1, 2, 3]
    assert len(closed) == 1


def test_an_own_error_is_said_where_the_others_are_gone(tmp_path: Path) -> None:
    def gone(_own: Outcome) -> list[Outcome]:
        raise UserError("another of the processes has ended")

    def work() -> Generator[Step, None, None]:
        yield Step(done=1)
        raise UserError("my disk is full")

    with pytest.raises(UserError, match="my disk is full"):
        together(tmp_path, gone).run("testing", 1, work())
    with pytest.raises(UserError, match="has ended"):
        together(tmp_path, gone).run("testing", 1, steps(1))


def test_a_defect_passes_as_it_is(tmp_path: Path) -> None:
    def work() -> Generator[Step, None, None]:
        yield Step(done=1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together(tmp_path, lambda own: [own], count=1).run("testing", 1, work())
