"""Rows: two sides that share nothing, prompts from elsewhere, everything accounted for."""

from dataclasses import replace

import pytest

from vibevoice_finetune.preparation.recordings import Clip, Dialogue, Record, Turn
from vibevoice_finetune.preparation.rows import Split, make_rows


def record(name: str, count: int, speakers: tuple[str | None, ...] = (None,), group: str | None = None) -> Record:
    """Clips of 4 s every 5 s, their speakers in turn."""
    clips = tuple(
        Clip(
            name,
            5.0 * i,
            5.0 * i + 4,
            5.0 * i,
            5.0 * i + 4,
            f"{name}/{i}.flac",
            f"{name} {i}.",
            speakers[i % len(speakers)],
        )
        for i in range(count)
    )
    return Record("digest", name, group or name, 5.0 * count, clips)


def audio(rows: list[dict[str, object]]) -> list[str]:
    return [str(row["audio"]) for row in rows]


def accounted(split: Split) -> int:
    return len(split.training) + len(split.validation) + len(split.rejected)


def test_recordings_are_never_on_both_sides() -> None:
    records = [record(f"r{i}", 5) for i in range(20)]
    split = make_rows(records, "anna", 0.1, seed=0)
    train = {name.split("/")[0] for name in audio(split.training)}
    held = {name.split("/")[0] for name in audio(split.validation)}
    assert train | held == {f"r{i}" for i in range(20)}
    assert train & held == set()
    assert len(held) == 2  # 10 % of 20
    assert split.rejected == []
    assert split.seconds == {"anna": (18 * 20.0, 2 * 20.0)}
    assert make_rows(records, "anna", 0.1, seed=0) == split
    assert audio(make_rows(records, "anna", 0.1, seed=1).validation) != audio(split.validation)


def test_groups_stay_together() -> None:
    records = [record(f"r{i}", 2, group=f"chapter{i % 10}") for i in range(40)]
    split = make_rows(records, "anna", 0.1, seed=0)
    held = {int(name[1:].split("/")[0]) % 10 for name in audio(split.validation)}
    assert len(held) == 1
    assert len(split.validation) == 8


def test_of_one_long_recording_the_end_is_held_out_and_the_border_left_out() -> None:
    split = make_rows([record("r", 20)], "anna", 0.1, seed=0)
    assert audio(split.training) == [f"r/{i}.flac" for i in range(17)]
    assert audio(split.validation) == ["r/18.flac", "r/19.flac"]
    assert [(row["from_sec"], row["reason"]) for row in split.rejected] == [
        (85.0, "left out between training and validation")
    ]


def test_one_of_two_long_recordings_is_not_held_out_whole() -> None:
    split = make_rows([record("a", 40), record("b", 60)], "anna", 0.05, seed=0)
    assert audio(split.validation) == [f"b/{i}.flac" for i in range(55, 60)]
    assert len(split.training) == 94


def test_without_validation_nothing_is_left_out() -> None:
    split = make_rows([record("r", 20)], "anna", 0.0, seed=0)
    assert (len(split.training), split.validation, split.rejected) == (20, [], [])


def test_a_single_clip_is_for_training() -> None:
    split = make_rows([record("r", 1)], "anna", 0.2, seed=0)
    assert (len(split.training), len(split.validation)) == (1, 0)


def test_validation_has_fixed_prompts_of_its_own_side() -> None:
    split = make_rows([record(f"r{i}", 5, (f"s{i % 2}",)) for i in range(20)], "", 0.2, seed=0)
    for row in split.validation:
        (prompt,) = row["voice_prompts"]
        assert prompt != row["audio"]
        assert prompt in audio(split.validation)
        owner = next(other for other in split.validation if other["audio"] == prompt)
        assert owner["speaker"] == row["speaker"]
    assert all("voice_prompts" not in row for row in split.training)


def test_what_is_rejected_is_listed_with_its_reason() -> None:
    one = record("a", 3)
    one = replace(one, clips=(replace(one.clips[0], rejected="too short", audio=None), *one.clips[1:]))
    broken = Record("digest", "b", "b", 0.0, failed="b.wav: cannot be decoded")
    split = make_rows([one, broken], "anna", 0.0, seed=0)
    assert [(row["recording"], row["reason"]) for row in split.rejected] == [
        ("a", "too short"),
        ("b", "b.wav: cannot be decoded"),
    ]
    assert accounted(split) == 4


def test_people_told_apart_in_a_recording_are_not_those_of_another() -> None:
    split = make_rows([record("a", 4, ("speaker0", "speaker1")), record("b", 2, ("speaker0",))], "x", 0.0, seed=0)
    assert {str(row["speaker"]) for row in split.training} == {"a/speaker0", "a/speaker1", "b/speaker0"}


@pytest.fixture
def talk() -> Record:
    """Ten turns; the third to fifth are a dialogue."""
    found = record("talk", 10, ("anna", "ben"))
    turns = (Turn("anna", "Come in."), Turn("ben", "Thank you."), Turn("anna", "Sit."))
    return replace(found, dialogues=(Dialogue("talk/dialogue0.flac", 10.0, 24.0, turns),))


def test_a_dialogue_has_a_prompt_from_elsewhere_for_each_speaker(talk: Record) -> None:
    split = make_rows([talk], "x", 0.0, seed=0)
    row = split.training[-1]
    assert row["text"] == "Speaker 0: Come in.\nSpeaker 1: Thank you.\nSpeaker 0: Sit."
    inside = {"talk/2.flac", "talk/3.flac", "talk/4.flac"}
    anna, ben = row["voice_prompts"]
    assert anna in {f"talk/{i}.flac" for i in (0, 2, 4, 6, 8)} - inside
    assert ben in {f"talk/{i}.flac" for i in (1, 3, 5, 7, 9)} - inside


def test_a_dialogue_across_the_border_is_left_out(talk: Record) -> None:
    across = replace(talk, dialogues=(replace(talk.dialogues[0], start_sec=30.0, end_sec=50.0),))
    alone = [replace(clip, speaker="anna") for clip in across.clips]
    split = make_rows([replace(across, clips=tuple(alone))], "x", 0.2, seed=0)
    assert [row["reason"] for row in split.rejected] == [
        "left out between training and validation",
        "reaches over the border between training and validation",
    ]


def test_a_dialogue_without_a_prompt_from_elsewhere_is_left_out(talk: Record) -> None:
    short = replace(talk, clips=talk.clips[2:5])
    split = make_rows([short], "x", 0.0, seed=0)
    assert [row["reason"] for row in split.rejected] == ["no voice prompt from elsewhere for each of its speakers"]
