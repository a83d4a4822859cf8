import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.speechlike import RATE_HZ, speechlike, with_noise
from tests.unit.validation.conftest import SENTENCES, Write, good_rows, save
from vibevoice_finetune.audio.source import parse_audio
from vibevoice_finetune.data.rows import Columns
from vibevoice_finetune.validation.findings import Finding, Severity, by_kind
from vibevoice_finetune.validation.listen import Ears, Job, hear, listen, pieces
from vibevoice_finetune.validation.read import read_file
from vibevoice_finetune.validation.validate import Options, Validation, cheap_warnings, validate

DEEP = Options(deep=True, num_threads=2)


def look(train: Path, held_out: Path | None = None, options: Options = DEEP) -> Validation:
    return validate(read_file(train, Columns()), read_file(held_out, Columns()) if held_out else None, options)


def found(validation: Validation) -> list[tuple[str, str]]:
    return [(finding.kind, finding.where) for finding in validation.findings]


def test_good_data_has_no_findings(speech: Path, write: Write) -> None:
    rows = good_rows(speech)
    rows[0]["voice_prompts"] = [str(speech / "01.wav")]
    validation = look(write("train.jsonl", rows[:10]), write("validation.jsonl", rows[10:]))
    assert found(validation) == []
    assert (validation.num_rows, validation.train.clips, validation.count(Severity.ERROR)) == (12, 10, 0)
    assert validation.validation is not None
    assert validation.validation.clips == 2


def test_each_fault_is_found_on_its_line_and_nothing_else(speech: Path, write: Write, tmp_path: Path) -> None:
    rows: list[object] = [*good_rows(speech)]

    def row(number: int, **changes: object) -> dict[str, object]:
        return {**good_rows(speech)[number], **changes}

    samples = speechlike(50)
    whole = Path(save(tmp_path, "whole.flac", samples)).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    outside = Path(save(tmp_path / "elsewhere", "real.wav", speechlike(51)))
    (tmp_path / "data" / "link.wav").symlink_to(outside)
    rows += [
        '{"audio": ',  # 13
        row(0, audio=str(tmp_path / "nowhere.wav")),
        row(1, text="[S1] A new text for this one.", audio=save(tmp_path, "a.wav", speechlike(52))),
        row(2, audio=str(tmp_path / "empty.wav"), text="Speaker 0: It will never be heard at all."),
        row(3, audio=str(tmp_path / "cut.flac"), text="Speaker 0: Half of this sentence is missing."),
        row(
            4,
            audio=save(tmp_path, "silent.wav", np.zeros(RATE_HZ)),
            text="Speaker 0: There is only silence in this recording.",
        ),
        row(
            5,
            audio=save(tmp_path, "n.wav", with_noise(speechlike(53), 12)),
            text="Speaker 0: There was a noisy street outside the house.",
        ),
        row(
            6,
            audio=str(tmp_path / "data" / "link.wav"),
            text="Speaker 0: The file of this one lives in another folder.",
        ),
        row(7, text="Speaker 0: The same file was used once before."),
        row(8, audio=save(tmp_path, "again.ogg", np.concatenate([np.zeros(7_000), speechlike(8) * 0.5]))),
        row(9, audio=save(tmp_path, "t.wav", samples[7_000:8_000]), text="Speaker 0: It is over before it began."),
        row(10, audio=save(tmp_path, "b.wav", speechlike(54)), text="Speaker 0: Two prompts, one speaker, no good.")
        | {"voice_prompts": [str(speech / "00.wav"), str(speech / "01.wav")]},
    ]
    validation = look(write("train.jsonl", rows))  # type: ignore[arg-type]
    assert sorted(found(validation), key=lambda one: int(one[1].split(":")[1])) == [
        ("bad-row", "train.jsonl:13"),
        ("missing-file", "train.jsonl:14"),
        ("speaker-tag", "train.jsonl:15"),
        ("unreadable-audio", "train.jsonl:16"),
        ("unreadable-audio", "train.jsonl:17"),
        ("silent", "train.jsonl:18"),
        ("noise", "train.jsonl:19"),
        ("outside-link", "train.jsonl:20"),
        ("same-audio", "train.jsonl:21"),
        ("same-text", "train.jsonl:22"),
        ("same-audio", "train.jsonl:22"),
        ("too-short", "train.jsonl:23"),
        ("prompt-count", "train.jsonl:24"),
    ]


def test_what_stands_on_both_sides(speech: Path, write: Write, tmp_path: Path) -> None:
    rows = good_rows(speech)
    copy = save(tmp_path, "copy.wav", speechlike(3) * 0.5)
    other = save(tmp_path, "other.wav", speechlike(70))
    held_out = [
        {**rows[0], "text": "Speaker 0: The very same file as in training."},
        {**rows[1], "audio": copy, "text": "Speaker 0: A copy of a file in training."},
        {**rows[2], "audio": other, "speaker": "Ben"},
    ]
    validation = look(write("train.jsonl", rows), write("validation.jsonl", held_out))
    assert found(validation) == [
        ("leaked-audio", "validation.jsonl:1"),
        ("leaked-text", "validation.jsonl:3"),
        ("leaked-audio", "validation.jsonl:2"),
    ]


def test_the_same_text_of_two_speakers_is_usual(speech: Path, write: Write) -> None:
    rows = good_rows(speech)
    rows[1] = {**rows[1], "text": rows[0]["text"], "speaker": "Ben"}
    assert found(look(write("train.jsonl", rows))) == []


def test_without_deep_nothing_is_decoded(speech: Path, write: Write, tmp_path: Path) -> None:
    rows = good_rows(speech)
    rows[0]["audio"] = save(tmp_path, "noisy.wav", with_noise(speechlike(60), 5))
    rows[1]["audio"] = save(tmp_path, "long.wav", np.zeros(70 * RATE_HZ, dtype=np.float32))
    validation = look(write("train.jsonl", rows), options=Options())
    # Zeros of 70 s are not heard, but their header says 70 s.
    assert found(validation) == [("speaking-rate", "train.jsonl:2"), ("long-clip", "train.jsonl:2")]
    assert validation.train.longest_sec == pytest.approx(70)


def test_a_bad_prompt_is_blamed_where_it_stands(speech: Path, write: Write, tmp_path: Path) -> None:
    rows = good_rows(speech)
    rows[3]["voice_prompts"] = [save(tmp_path, "noisy.wav", with_noise(speechlike(60), 12))]
    (finding,) = look(write("train.jsonl", rows)).findings
    assert (finding.kind, finding.where, finding.row) == (
        "noise",
        "train.jsonl:4: voice_prompts[0]",
        "train.jsonl:4",
    )


def test_recogniser_and_encoder_are_asked(speech: Path, write: Write) -> None:
    pytest.importorskip("rapidfuzz")
    rows = good_rows(speech)
    rows[2]["voice_prompts"] = [str(speech / "05.wav")]
    beginnings = np.stack([speechlike(number)[:20_000] for number in range(12)])
    asked: list[int] = []

    def number_of(samples: np.ndarray) -> int:
        return int(np.abs(beginnings - samples[:20_000]).mean(axis=1).argmin())

    def recognise(samples: np.ndarray, rate_hz: int) -> str:
        assert rate_hz == RATE_HZ
        asked.append(number_of(samples))
        return SENTENCES[7] if asked[-1] == 4 else SENTENCES[asked[-1]]

    def embed(samples: np.ndarray, rate_hz: int) -> np.ndarray:
        assert rate_hz == RATE_HZ
        return np.eye(3, dtype=np.float32)[1 if number_of(samples) == 9 else 0]

    ears = Ears(recogniser=recognise, encoder=embed)
    validation = look(write("train.jsonl", rows), options=replace(DEEP, ears=ears))
    assert found(validation) == [("wrong-text", "train.jsonl:5"), ("other-voice", "train.jsonl:10")]
    assert sorted(asked) == list(range(12))  # 05.wav once, as a target


def test_memory_holds_the_recordings_in_flight_only(speech: Path) -> None:
    alive, most = 0, 0

    def jobs():  # type: ignore[no-untyped-def]
        nonlocal alive, most
        for number in range(40):
            alive += 1
            most = max(most, alive)
            yield Job(parse_audio(str(speech / f"{number % 12:02d}.wav"), None, f"rows:{number}"), is_target=True)

    numbers = []
    for heard in listen(jobs(), num_threads=2, ears=Ears()):
        alive -= 1
        numbers.append(heard.source.where)
    assert numbers == [f"rows:{number}" for number in range(40)]
    assert most <= 5


def test_long_recordings_are_cut_in_pauses_for_the_recogniser() -> None:
    samples = speechlike(words=40, pause_sec=0.4)  # 0.75 s a word
    found = pieces(samples, max_sec=10)
    assert len(found) == 4
    np.testing.assert_array_equal(np.concatenate(found), samples)
    assert max(map(len, found)) <= 10.5 * RATE_HZ
    assert all(np.abs(piece[:1_000]).max() < 0.01 for piece in found)
    assert len(pieces(speechlike())) == 1


def test_arrays_and_channels_are_heard() -> None:
    samples = speechlike()
    stereo = np.stack([samples, -0.95 * samples], axis=1)
    source = parse_audio({"array": stereo, "sampling_rate": RATE_HZ}, None, "rows:0")
    heard = hear(Job(source, is_target=True), Ears())
    # Some readers refuse what cancels; then there is an error in place of numbers.
    assert heard.error is not None or (heard.sound is not None and heard.sound.cancels)


def test_cheap_warnings_are_a_line_for_each_kind(speech: Path, write: Write) -> None:
    rows = good_rows(speech)
    rows[2]["text"] = "Speaker 0: In 1984 she left."
    rows[4]["text"] = "Speaker 0: The 2 of us stayed."
    rows[5]["text"] = rows[6]["text"]
    read = read_file(write("train.jsonl", rows), Columns())
    digits, same = sorted(cheap_warnings(read.rows))
    assert digits.startswith("1 row: the same text twice from one speaker, first train.jsonl:7")
    assert same.startswith("2 rows: digits in the text, first train.jsonl:3")
    assert cheap_warnings(read.rows[7:]) == []


def test_a_label_that_train_refuses_is_not_called_a_number(speech: Path, write: Write) -> None:
    rows = good_rows(speech)
    rows[2]["text"] = "SPEAKER_01: She left."
    assert cheap_warnings(read_file(write("train.jsonl", rows), Columns()).rows) == []


def test_findings_are_grouped_worst_first() -> None:
    groups = by_kind(
        [
            Finding("digits", "rows:1", ""),
            Finding("noise", "rows:2", "", weight=-20),
            Finding("noise", "rows:3", "", weight=-5),
            Finding("silent", "rows:4", ""),
        ]
    )
    assert [(kind.name, [one.where for one in group]) for kind, group in groups.items()] == [
        ("silent", ["rows:4"]),
        ("noise", ["rows:3", "rows:2"]),
        ("digits", ["rows:1"]),
    ]


def test_statistics_count_usable_rows(speech: Path, write: Write) -> None:
    rows = [*good_rows(speech), json.dumps({"audio": "nowhere.wav", "text": "Speaker 0: x"})]
    validation = look(write("train.jsonl", rows), options=Options(rows_a_step=5))  # type: ignore[arg-type]
    seconds = len(speechlike()) / RATE_HZ
    assert validation.train.clips == 12
    assert validation.train.steps_an_epoch == 3
    assert validation.train.minutes_by_speaker == {"Anna": pytest.approx(12 * seconds / 60)}
    assert sum(validation.train.histogram) == 12
