"""The demo as its user meets it: a folder with everything in it, and plain words about what it is not."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile

from vibevoice_finetune.arguments import make_arguments
from vibevoice_finetune.commands import table
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.demo import demo
from vibevoice_finetune.demo.picture import Panel, draw
from vibevoice_finetune.errors import UserError


def missing(extra: str, module: str) -> None:
    raise UserError(f'{module} is not installed; run: pip install "vibevoice-finetune[{extra}]"')


def test_the_demo_makes_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "NUM_SPOKEN", 1)
    monkeypatch.setattr(demo, "NUM_JUDGED", 1)
    folder = tmp_path / "demo"
    assert table.main(["demo", "--output_dir", str(folder), "--max_steps", "2"]) == 0  # the first step has the rate 0
    said = capsys.readouterr().out
    assert "A recogniser gets" in said
    assert "word error" in said
    assert "vibevoice-finetune train --model_name_or_path microsoft/VibeVoice-1.5B" in said
    assert "consent" in said
    assert (folder / "run" / "lora" / "adapter_model.safetensors").stat().st_size > 0
    assert json.loads((folder / "run" / "lora" / "vibevoice_finetune.json").read_text())["base_model"] == "small"
    before, after, real = (soundfile.read(folder / name / "1.wav") for name in ("before", "after", "real"))
    assert before[1] == after[1] == real[1] == 24_000
    assert len(before[0]) > 12_000  # half a second of speech
    assert not np.array_equal(before[0], after[0])
    assert len(matplotlib.image.imread(folder / demo.PICTURE)) > 500
    assert (folder / "report" / "index.html").is_file()


@pytest.mark.slow
def test_the_demo_as_it_is_keeps_the_words_and_comes_no_further_from_the_voice(tmp_path: Path) -> None:
    """Measured with 24 sentences: word error 0.29 → 0.26, similarity 0.61 → 0.63."""
    folder = tmp_path / "demo"
    assert table.main(["demo", "--output_dir", str(folder)]) == 0
    figures = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))["figures"]
    base, tuned = (
        {key: one["value"]["value"] for key, one in figures[name].items()} for name in ("base", "fine-tuned")
    )
    assert base["word_error"] < 0.5
    assert tuned["word_error"] < base["word_error"] + 0.15
    assert tuned["similarity"] > base["similarity"] - 0.03


def test_without_the_judges_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(_request: object) -> None:
        missing("asr", "moonshine_voice")

    monkeypatch.setattr(demo, "evaluate", evaluate)
    found = demo.judged([], tmp_path / "lora", tmp_path / "report", demo.Console(quiet=True))
    assert found == ['Not judged: moonshine_voice is not installed; run: pip install "vibevoice-finetune[asr]"']


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert table.main(["demo", "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --output_dir {tmp_path}: not an empty folder; remove it or name another one.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_matplotlib_is_said_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "require", missing)
    folder = tmp_path / "demo"
    assert table.main(["demo", "--output_dir", str(folder)]) == 2
    assert 'pip install "vibevoice-finetune[demo]"' in capsys.readouterr().err
    assert not folder.exists()


def test_the_picture_shows_a_tone_at_its_pitch(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 3_000 * np.arange(24_000) / 24_000).astype(np.float32)
    draw([Panel("a tone of 3 kHz", tone), Panel("nothing was said", tone[:0])], tmp_path / "tone.png")
    brightness = matplotlib.image.imread(tmp_path / "tone.png")[:, 500, :3].sum(-1)[40:220]  # a column of the upper one
    # From 12 kHz at the top to 0 at the bottom: a quarter of the height above the lower edge.
    assert 0.6 < np.flatnonzero(brightness > 1.5 * np.median(brightness)).mean() / len(brightness) < 0.85


def test_the_flags_of_the_demo_are_flags_of_train(tmp_path: Path) -> None:
    arguments = make_arguments(demo.training_flags(tmp_path / "run", max_steps=7))
    assert arguments.loop.max_steps == 7
    assert arguments.data.train_jsonl == [str(demo.VOICE / "train.jsonl")]


def test_the_command_that_the_demo_recommends_parses() -> None:
    text = demo.CLOSING.format(folder="a", picture="b")
    command = text.split("vibevoice-finetune train", 1)[1].split("\n\n", 1)[0]
    assert parse(command.replace("\\\n", " ").split()).loop.do_train


def test_the_voice_of_the_demo_is_whole_and_small() -> None:
    rows = {
        name: [json.loads(line) for line in (demo.VOICE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "eval")
    }
    assert [len(rows["train"]), len(rows["eval"])] == [40, 12]
    assert not {row["text"] for row in rows["train"]} & {row["text"] for row in rows["eval"]}
    audio = {row["audio"] for found in rows.values() for row in found}
    assert audio == {path.relative_to(demo.VOICE).as_posix() for path in demo.VOICE.rglob("*.flac")}
    assert sum(path.stat().st_size for path in demo.VOICE.rglob("*")) < 3_000_000
    assert "licence" in (demo.VOICE / "README.md").read_text(encoding="utf-8")
