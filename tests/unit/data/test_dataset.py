"""Which voice prompt a row gets, and which rows are refused."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from vibevoice_finetune.audio.source import parse_audio
from vibevoice_finetune.audio.span import Span
from vibevoice_finetune.data.jsonl import BadRows, Row
from vibevoice_finetune.data.prompt import SYSTEM_PIECE, SpecialTokens
from vibevoice_finetune.data.voice_prompts import PromptSource, make_requests, plan_rows
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.latents.store import Latents, LatentStore, Segment

SPECIAL = SpecialTokens(speech_start=90, speech_end=91, frame=92, end_of_text=93)


def encode(text):
    return list(text.encode())


@pytest.fixture
def clip(tmp_path):
    def make(name, seconds=1.0):
        rng = np.random.default_rng(sum(name.encode()))
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, 0.1 * rng.standard_normal(int(24_000 * seconds)).astype(np.float32), 24_000)
        return parse_audio(str(path), None, name)

    return make


def row(text, audio, prompts=None, speaker=None, where="f:1"):
    return Row(text=text, audio=audio, voice_prompts=prompts, speaker=speaker, where=where)


def requests(rows, bad_rows=None, seed=1):
    return make_requests(
        rows, seed=seed, cuts_per_clip=3, normalize_targets=True, bad_rows=bad_rows or BadRows("error")
    )


def test_order_of_prompt_sources(clip):
    a, b, c = clip("a"), clip("b"), clip("c")
    found = requests(
        [
            row("Speaker 0: x", a, prompts=(c,), speaker="s"),
            row("Speaker 0: x", a, speaker="s"),
            row("Speaker 0: x", b, speaker="s"),
            row("Speaker 0: x", a, speaker="alone"),
            row("Speaker 0: x", a),
            row("Speaker 0: x\nSpeaker 1: y", a, speaker="s"),
            row("Speaker 0: x\nSpeaker 1: y", a, prompts=(b, c)),
        ]
    )
    assert [request.source for request in found] == [
        PromptSource.GIVEN,
        PromptSource.SPEAKER,
        PromptSource.SPEAKER,
        PromptSource.CUT,
        PromptSource.CUT,
        PromptSource.NONE,
        PromptSource.GIVEN,
    ]
    assert [len(request.prompts) for request in found] == [1, 1, 1, 3, 3, 0, 2]
    for request in found:
        assert request.target.semantic
        assert request.target.cut is None
        assert all(prompt.normalize and not prompt.semantic for prompt in request.prompts)
        assert all((prompt.cut is not None) == (request.source is PromptSource.CUT) for prompt in request.prompts)


def test_cuts_depend_on_the_seed_and_the_audio_not_on_the_row_s_place(clip, tmp_path):
    store = LatentStore(tmp_path / "store", "encoder", 2, 3)
    rows = [row(f"Speaker 0: {name}", clip(name)) for name in "abcd"]

    def keys(rows, seed=1):
        return [[store.key(prompt) for prompt in request.prompts] for request in requests(rows, seed=seed)]

    whole = keys(rows)
    assert len({key for of_row in whole for key in of_row}) == 4 * 3
    assert keys(rows[:2]) + keys(rows[2:]) == whole  # pieces of a file, in jobs that do not know of each other
    assert keys(rows[::-1]) == whole[::-1]
    assert not {key for of_row in keys(rows, seed=2) for key in of_row} & {key for of_row in whole for key in of_row}


def fill(store, found, frames):
    with store.writer() as writer:
        for request, count in zip(found, frames, strict=True):
            zeros = np.zeros((count, 2), dtype=np.float32)
            writer.add(store.key(request.target), Latents(zeros, np.zeros((count, 3), dtype=np.float32)))
            for prompt in request.prompts:
                if prompt.cut is not None or request.source is PromptSource.GIVEN:
                    writer.add(store.key(prompt), Latents(zeros[:2], None))
    store.reload()


def plan(found, frames, tmp_path, max_tokens=10_000, bad_rows=None):
    store = LatentStore(tmp_path / "store", "encoder", 2, 3)
    fill(store, found, frames)
    return store, plan_rows(found, store, encode, SPECIAL, max_tokens, bad_rows or BadRows("error"))


def test_another_clip_of_the_speaker_never_the_row_itself(clip, tmp_path):
    clips = [clip("a"), clip("b", 2.0), clip("c", 3.0)]
    found = requests([row("Speaker 0: x", audio, speaker="s") for audio in clips])
    store, planned = plan(found, [8, 15, 23], tmp_path)
    keys = [store.key(request.target) for request in found]
    drawn = [{row.draw_prompts(np.random.default_rng(seed)) for seed in range(40)} for row in planned]
    assert drawn == [
        {(keys[1],), (keys[2],)},
        {(keys[0],), (keys[2],)},
        {(keys[0],), (keys[1],)},
    ]
    assert planned[0].prompt_choices is planned[2].prompt_choices, "memory grows with the square of the rows"


def test_a_speaker_with_one_clip_twice_has_no_other_clip(clip, tmp_path):
    a = clip("a")
    found = requests([row("Speaker 0: x", a, speaker="s"), row("Speaker 0: y", a, speaker="s")])
    _, planned = plan(found, [8, 8], tmp_path)
    assert [row.source for row in planned] == [PromptSource.NONE] * 2
    assert not any(row.has_prompts for row in planned)
    assert planned[0].draw_prompts(np.random.default_rng(0)) == ()


def test_length_counts_the_longest_prompt(clip, tmp_path):
    found = requests([row("Speaker 0: x", clip("a"), speaker="s"), row("Speaker 0: x", clip("b", 2.0), speaker="s")])
    _, planned = plan(found, [8, 15], tmp_path)
    text = [
        SYSTEM_PIECE,
        " Voice input:\n",
        " Speaker 0:",
        "\n",
        " Text input:\n",
        " Speaker 0: x\n",
        " Speech output:\n",
    ]
    fixed = sum(map(len, text)) + 3 + 2  # <start> and <end> of the prompt, <start>; <end> and end of text
    assert [row.num_tokens for row in planned] == [fixed + 15 + 8, fixed + 8 + 15]


def test_too_long_names_row_and_limit(clip, tmp_path):
    found = requests([row("Speaker 0: x", clip("a"), where="train.jsonl:3")])
    with pytest.raises(DataError, match=r"train.jsonl:3: the row is \d+ tokens long .* at most 50 fit; .*--max_length"):
        plan(found, [8], tmp_path, max_tokens=50)


def test_a_row_that_exceeds_the_model_is_not_told_to_raise_a_flag(clip, tmp_path):
    found = requests([row("Speaker 0: x", clip("a"), where="train.jsonl:3")])
    store = LatentStore(tmp_path / "store", "encoder", 2, 3)
    fill(store, found, [8])
    with pytest.raises(DataError, match="the model has 50 positions; cut the clip up") as caught:
        plan_rows(found, store, encode, SPECIAL, 50, BadRows("error"), model_positions=50)
    assert "--max_length" not in str(caught.value)


def test_control_tokens_in_a_text_are_refused_before_anything_is_encoded(clip):
    special = SpecialTokens(90, 91, 92, 93, reserved={93: "<|endoftext|>"})
    rows = [row("Speaker 0: x", clip("a")), row("Speaker 0: x<|endoftext|>", clip("b"), where="f:2")]
    options = {"seed": 1, "cuts_per_clip": 1, "normalize_targets": True, "special": special}
    with pytest.raises(DataError, match=r'^f:2: the text holds "<\|endoftext\|>"'):
        make_requests(rows, bad_rows=BadRows("error"), **options)
    skipping = BadRows("skip")
    assert len(make_requests(rows, bad_rows=skipping, **options)) == 1
    assert skipping.counts == {"control token": 1}


def test_bad_scripts_are_counted_and_left_out(clip):
    a = clip("a")
    rows = [
        row("Hello.", a, where="f:1"),
        row("Speaker 0: x", a, prompts=(a, a), where="f:2"),
        row("Speaker 0: x", a, where="f:3"),
    ]
    bad_rows = BadRows("skip")
    assert [request.where for request in requests(rows, bad_rows)] == ["f:3"]
    assert bad_rows.counts == Counter({"no speaker tag": 1, "wrong number of prompts": 1})
    with pytest.raises(DataError, match=r'f:1: no speaker tag in "Hello."; write "Speaker 0: Hello."'):
        requests(rows)
    with pytest.raises(DataError, match="f:2: 2 voice prompts for 1 speaker"):
        requests(rows[1:])


def test_parts_of_one_file_are_entries_of_their_own_also_in_the_next_run(clip, tmp_path):
    whole = clip("a", 2.0)
    os.utime(whole.path, (1_000_000_000, 1_000_000_000))  # long ago, so that its digest is remembered
    sources = [whole, *(replace(whole, span=Span(start, start + 1)) for start in (0.0, 1.0))]
    keys = []
    for _ in range(2):
        store = LatentStore(tmp_path / "store", "encoder", 2, 3)
        keys.append([store.key(Segment(source, normalize=True, cut=None, semantic=True)) for source in sources])
        store.digests.save()
    assert len(set(keys[0])) == 3
    assert keys[0] == keys[1]
