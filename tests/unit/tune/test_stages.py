import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vibevoice_finetune.errors import StoppedRun
from vibevoice_finetune.tune import stages
from vibevoice_finetune.tune.stages import Done, Stages, key_of, last_words, listing_key


def test_a_stage_is_done_only_for_the_same_key(tmp_path: Path) -> None:
    Stages(tmp_path).add("train", Done("k1", 12.5, "done"))
    again = Stages(tmp_path)
    assert again.find("train", "k1") == Done("k1", 12.5, "done")
    assert again.find("train", "k2") is None
    assert again.find("evaluate", "k1") is None
    assert again.last("train") == Done("k1", 12.5, "done")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"train": 3}', '{"train": {"no": "key"}}'])
def test_a_damaged_record_means_that_nothing_is_done(tmp_path: Path, text: str) -> None:
    (tmp_path / stages.STAGES_FILE).write_text(text)
    assert Stages(tmp_path).find("train", "k1") is None


def test_a_key_follows_settings_and_contents(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = key_of({"a": 1}, [file])
    os.utime(file, (1, 1))
    assert key_of({"a": 1}, [file]) == first  # a touch changes nothing
    assert key_of({"a": 2}, [file]) != first
    file.write_text("two")
    assert key_of({"a": 1}, [file]) != first


def test_a_listing_key_follows_sizes_and_times(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_text("one")
    first = listing_key([], [file])
    assert listing_key([], [file]) == first
    file.write_text("three")
    assert listing_key([], [file]) != first


def test_last_words_are_those_of_the_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("loading\nerror: no such file\nsome warning\n\n")
    assert last_words(log) == "no such file"
    log.write_text("loading\nTraceback\nKeyError: 3\n")
    assert last_words(log) == "KeyError: 3"
    assert last_words(tmp_path / "none") == ""


def test_a_command_runs_and_is_written_down(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    assert stages.run(["--version"], log, lambda: None, "version") == 0
    assert "vibevoice-finetune" in log.read_text()
    assert stages.run(["nonsense"], log, lambda: None, "nonsense") == 2
    assert "no command named" in last_words(log)


def fake(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(stages, "command", lambda _words: [sys.executable, "-c", code])


def test_a_signal_is_passed_on_and_the_stage_may_end_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "saved"
    fake(
        monkeypatch,
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(75)))\n"
        f"pathlib.Path({str(mark)!r} + '.ready').touch()\n"
        "time.sleep(60)\n",
    )

    def tell() -> None:
        if Path(f"{mark}.ready").exists():
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedRun, match="stopped during: train; start the same command again"):
        stages.run([], tmp_path / "log", tell, "train")
    assert mark.exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux to end a child with its parent")
def test_a_stage_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = f"import os, time, pathlib; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vibevoice_finetune.tune import stages\n"
        f"stages.command = lambda words: [sys.executable, '-c', {child!r}]\n"
        f"stages.run([], Path({str(tmp_path / 'log')!r}), lambda: None, 'train')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while time.monotonic() < end and is_running(int(pid.read_text())):
        time.sleep(0.05)
    assert not is_running(int(pid.read_text()))


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    Stages(tmp_path).add("train", Done("k", 1.0, "n"))
    assert json.loads((tmp_path / "stages.json").read_text()) == {"train": {"key": "k", "seconds": 1.0, "note": "n"}}
