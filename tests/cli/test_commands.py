"""The table of commands: quick to answer, exact about mistakes, and every line of it leads somewhere."""

import os
import subprocess
import sys

import pytest

from vibevoice_finetune import __version__
from vibevoice_finetune.commands import table
from vibevoice_finetune.errors import DataError


def run_process(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vibevoice_finetune", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in table.COMMANDS:
        assert f"  {command.name} " in text
        assert command.summary in text


def test_help_answers_within_half_a_second() -> None:
    """Seconds of the processor: others may use the machine meanwhile."""
    before = os.times()
    assert run_process("train", "--help").returncode == 0
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.5


HELPS = [[command.name, "--help"] for command in table.COMMANDS]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["tarin"], [], *HELPS])
def test_nothing_heavy_is_imported_for_help_or_before_a_command_is_known(words: list[str]) -> None:
    code = (
        "import sys; from vibevoice_finetune.commands.table import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vibevoice-finetune {__version__}\n"


def test_unknown_command_is_one_line_and_exit_code_2() -> None:
    result = run_process("tarin", "--output_dir", "x")
    assert result.returncode == 2
    assert result.stdout == ""
    names = ", ".join(command.name for command in table.COMMANDS)
    assert names.startswith("tune, web, prepare, validate, train, ")
    assert result.stderr == f"error: no command named 'tarin'; commands: {names}; see vibevoice-finetune --help\n"


ENDING = """
import atexit, sys
from vibevoice_finetune.commands.table import program

class Part:
    def __del__(self):
        print("taken apart")

part = Part()

def body():
    atexit.register(print, "hook")
    print("body", end=" ")
    if sys.argv[1] == "error":
        raise RuntimeError("nobody catches this")
    return int(sys.argv[1])

program(body)
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("ending", "code"), [("0", 0), ("75", 75), ("error", 1)])
def test_one_of_several_processes_ends_before_the_interpreter_is_taken_apart(
    processes: int, ending: str, code: int
) -> None:
    """Threads of the group abort a process whose interpreter goes before them; hooks, output and code are kept."""
    words = [sys.executable, "-c", ENDING, ending]
    environment = {**os.environ, "WORLD_SIZE": str(processes)}
    result = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == code, result.stderr
    assert ("nobody catches this" in result.stderr) == (ending == "error")
    taken_apart = [] if processes == 2 else ["taken apart"]
    assert result.stdout.splitlines() == ["body hook", *taken_apart]


def test_no_command_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no command given; commands: ")


@pytest.mark.parametrize("command", table.COMMANDS, ids=lambda command: command.name)
def test_every_line_of_the_table_leads_to_a_function(command: table.Command) -> None:
    assert callable(command.load())


class Recorder:
    """Stands in for the table's only command."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure
        self.words: list[str] | None = None

    def __call__(self, words: list[str]) -> None:
        self.words = words
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(table.Command, "load", lambda self: recorder)
    return recorder


def test_the_command_gets_the_words_after_its_name(recorder: Recorder) -> None:
    assert table.main(["train", "--output_dir", "train"]) == 0
    assert recorder.words == ["--output_dir", "train"]


def test_a_users_mistake_is_said_without_traceback(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.failure = DataError("train.jsonl:3: not JSON")
    assert table.main(["train"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: train.jsonl:3: not JSON\n"
    assert captured.out == ""


def test_our_own_defects_keep_their_traceback(recorder: Recorder) -> None:
    recorder.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        table.main(["train"])


def test_ctrl_c_is_no_traceback(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.failure = KeyboardInterrupt()
    assert table.main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
