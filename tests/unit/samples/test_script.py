"""What samples say: a few rows of the data with a voice that stays the same, or a script of the user's."""

import json
from pathlib import Path

import pytest
import soundfile

from tests.unit.samples.texts import text, tone
from vibevoice_finetune.audio.source import AudioSource, load_audio, parse_audio
from vibevoice_finetune.data.rows import Columns, Row
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.samples.script import pick_rows, read_sample_script, texts_of_rows


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "clip.wav", tone(seconds=2.0), 24_000)
    return tmp_path / "clip.wav"


def source(clip: Path, where: str) -> AudioSource:
    return parse_audio(str(clip), None, where)


def row(clip: Path, number: int, speaker: str | None = None, line: str = "Speaker 0: Hi.", prompts=None) -> Row:
    where = f"train.jsonl:{number}"
    return Row(line, source(clip, where), prompts, speaker, where)


def test_rows_come_from_all_over_the_data(clip: Path) -> None:
    rows = [row(clip, number) for number in range(1, 10)]
    usable = [one.where for one in rows]
    assert [one.where for one in pick_rows(rows, usable)] == ["train.jsonl:1", "train.jsonl:4", "train.jsonl:7"]
    assert [one.where for one in pick_rows(rows, usable[7:])] == ["train.jsonl:8", "train.jsonl:9"]


def test_where_a_voice_comes_from(clip: Path) -> None:
    own = (source(clip, "own"),)
    rows = [
        row(clip, 1, "anna", prompts=own),
        row(clip, 2, "ben"),
        row(clip, 3),
        row(clip, 4, "ben"),
        row(clip, 5, line="Speaker 0: Hi.\nSpeaker 1: You."),
    ]
    given, other, cut = pick_rows(rows, [rows[0].where, rows[1].where, rows[2].where])
    assert given.voice_prompts == own
    assert other.voice_prompts == (rows[3].audio,)  # another clip of ben's
    assert cut.voice_prompts is not None
    assert len(load_audio(cut.voice_prompts[0])) == 24_000  # the first half of two seconds
    (dialogue,) = pick_rows(rows, [rows[4].where])
    assert dialogue.voice_prompts == ()


def test_a_model_trained_without_voices_is_given_none(clip: Path) -> None:
    rows = pick_rows([row(clip, 1)], ["train.jsonl:1"])
    assert len(texts_of_rows(rows)[0].script.voices) == 1
    assert texts_of_rows(rows, with_voices=False)[0].script.voices == ()


def test_how_long_a_text_may_take(clip: Path) -> None:
    (spoken,) = texts_of_rows([row(clip, 1)])
    assert spoken.limit_sec() == 6.0  # three times its recording
    assert text("Speaker 0: Hi.").limit_sec() == 5.0
    assert text(f"Speaker 0: {'x' * 100}").limit_sec() == 20.0


def test_a_script_may_be_rows_or_a_script(clip: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "Speaker 0: Hi.", "audio": "clip.wav", "voice_prompts": ["clip.wav"]}))
    (found,) = read_sample_script(rows, Columns())
    assert found.text == "Hi."
    assert len(found.speaker_clips) == 2
    scripts = tmp_path / "scripts.json"
    scripts.write_text(json.dumps([{"script": "One.", "voices": ["clip.wav"]}, {"script": "Two."}]))
    one, two = read_sample_script(scripts, Columns())
    assert (one.text, two.text) == ("One.", "Two.")
    assert (len(one.speaker_clips), len(two.speaker_clips)) == (1, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.json", None, "--sample_script .*no.json: cannot be read"),
        ("a.csv", "x", "--sample_script .*a.csv: is not a .txt or .json file"),
        ("bad.json", "[{", "bad.json: is not JSON"),
        ("voice.json", '{"script": "Hi.", "voices": ["gone.wav"]}', "gone.wav"),
        ("silent.json", '{"script": "Hi.", "voices": ["noise.txt"]}', "noise.txt"),
        ("empty.jsonl", "", "holds no rows"),
        ("rows.jsonl", '{"text": "Hi.", "audio": "gone.wav"}', "gone.wav"),
        ("many.json", json.dumps([{"script": "Hi."}] * 101), "has 101 texts; at most 100 are expected"),
    ],
)
def test_a_script_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    (tmp_path / "noise.txt").write_text("no sound")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_sample_script(tmp_path / name, Columns())
    assert "\n" not in str(caught.value)
