"""`validate` from the command line, in this process."""

import json
from pathlib import Path

import pytest
import soundfile

from tests.speechlike import RATE_HZ, speechlike, with_noise
from vibevoice_finetune.commands.table import main

WORDS = ("kettle", "letter", "garden", "bottle", "winter", "answer")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good.jsonl, warned.jsonl (a noisy row) and wrong.jsonl (a row without a tag)."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, word in enumerate(WORDS):
        soundfile.write(folder / f"{word}.wav", speechlike(number), RATE_HZ)
        rows.append({"audio": f"{word}.wav", "text": f"Speaker 0: This is the {word} that we spoke of."})
    soundfile.write(folder / "noisy.wav", with_noise(speechlike(9), 10), RATE_HZ)
    noisy = {"audio": "noisy.wav", "text": "Speaker 0: This is the street that we spoke of."}
    untagged = {**rows[0], "text": "This is the kettle that we spoke of."}
    for name, content in (("good", rows), ("warned", [*rows, noisy]), ("wrong", [untagged, *rows[1:]])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def test_good_data_is_code_0(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(data / "good.jsonl"), "--deep"]) == 0
    assert capsys.readouterr().out.endswith("6 rows: 0 errors, 0 warnings.\n")


def test_warnings_are_code_0(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--train_jsonl", str(data / "warned.jsonl"), "--deep"]) == 0
    assert "  warned.jsonl:7: noise only" in capsys.readouterr().out


def test_errors_are_code_1_and_can_be_fixed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = tmp_path / "fixed.jsonl"
    assert main(["validate", str(data / "wrong.jsonl"), "--fix", str(fixed)]) == 1
    out = capsys.readouterr().out
    assert "error: speaker-tag, 1 row" in out
    assert "5 rows as before, 1 corrected, 0 left out" in out
    assert main(["validate", str(fixed), "--deep"]) == 0


def test_the_page(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    page = tmp_path / "page.html"
    assert main(["validate", str(data / "warned.jsonl"), "--deep", "--report", str(page)]) == 0
    assert "<audio" in page.read_text(encoding="utf-8")


def test_both_sets(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["--train_jsonl", str(data / "good.jsonl"), "--validation_jsonl", str(data / "warned.jsonl")]
    assert main(["validate", *both]) == 0
    out = capsys.readouterr().out
    assert "warning: leaked-audio, 6 rows" in out
    assert "validation: 7 clips" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give a JSONL file or --dataset_name (found neither)"),
        (["good.jsonl", "--train_jsonl", "good.jsonl"], "give the list once"),
        (["good.jsonl", "--dataset_name", "x"], "found both"),
        (["good.jsonl", "--transcribe"], "--transcribe listens to the audio; add --deep"),
        (["good.jsonl", "--compare_voices"], "--compare_voices listens to the audio; add --deep"),
        (["--dataset_name", "x", "--fix", "y.jsonl"], "--fix writes a JSONL file"),
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["good.jsonl", "--fix", "good.jsonl"], "exists already"),
        (["good.jsonl", "--fix", "True"], "--fix True: expected is the file to write"),
        (["good.jsonl", "--max_shown", "-1"], "--max_shown -1"),
        (["good.jsonl", "--report", "good.jsonl"], "--report good.jsonl: is a web page"),
        (["good.jsonl", "--report", "."], "--report .: is a web page"),
        (["good.jsonl", "--report", "good.jsonl/page.html"], "choose another place with --report"),
    ],
)
def test_mistakes_are_one_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(data)
    assert main(["validate", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_texts_and_names_of_strangers_are_shown_safely(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2")
    base = json.loads((data / "good.jsonl").read_text().splitlines()[0])
    base["audio"] = str(data / base["audio"])
    rows = [
        base,
        {**base, "text": "Speaker 0: red \x1b[31m text that goes on and on."},
        {**base, "text": "Speaker 0: half \ud800 a letter is in here, you see."},
        {**base, "text": "\x1b]0;title\x07 without any tag at all."},
        {**base, "text": "Speaker 0: two lines\u2028and a half caf\u00c3\u0085 here."},
        {**base, "text": "Speaker 0: an ordinary text for a strange name.", "speaker": "\x1b[2J\ud800\u202eAnna"},
        {**base, "text": "Speaker 0: a file with a strange name is here.", "audio": "no\x1b[31m\ud800where.wav"},
    ]
    path = tmp_path / "strange.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, fixed = tmp_path / "page.html", tmp_path / "fixed.jsonl"
    assert main(["validate", str(path), "--deep", "--report", str(page), "--fix", str(fixed), "--max_shown", "0"]) == 1
    for text in (capsys.readouterr().out, page.read_text(encoding="utf-8")):
        assert [character for character in text if not character.isprintable() and character != "\n"] == []


def test_train_says_the_cheap_part_by_itself(
    data: Path, tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in (data / "good.jsonl").read_text().splitlines()][:2]
    rows[1]["text"] = "Speaker 0: There were 12 of them."
    (data / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model_name_or_path", str(tiny_checkpoint), "--latents_dir", str(tmp_path / "latents")]
    assert main(["encode", "--train_jsonl", str(data / "digits.jsonl"), *words]) == 0
    said = [record.getMessage() for record in caplog.records if "vibevoice-finetune validate" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("1 row: digits in the text, first digits.jsonl:2: ")


def test_a_saved_data_set(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    rows = [json.loads(line) for line in (data / "warned.jsonl").read_text().splitlines()]
    for row in rows:
        row["audio"] = str(data / row["audio"])
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "set"))
    capsys.readouterr()
    assert main(["validate", "--dataset_name", str(tmp_path / "set"), "--deep"]) == 0
    out = capsys.readouterr().out
    assert "row 6: noise only" in out
    assert out.endswith("7 rows: 0 errors, 1 warning.\n")
    two = {"train": datasets.Dataset.from_list(rows[:6]), "validation": datasets.Dataset.from_list(rows[6:])}
    datasets.DatasetDict(two).save_to_disk(str(tmp_path / "both"))
    assert main(["validate", "--dataset_name", str(tmp_path / "both")]) == 0
    assert "validation: 1 clip, " in capsys.readouterr().out
    assert main(["validate", "--dataset_name", str(tmp_path / "both"), "--eval_split_name", "test"]) == 2
    assert 'no split "test"' in capsys.readouterr().err
