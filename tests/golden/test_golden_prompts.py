"""Token ids of the prompt against what the original implementation makes of the same scripts."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vibevoice_finetune.data.prompt import SpecialTokens, generation_prompt, training_sequence
from vibevoice_finetune.data.script import parse_script

GOLDEN = Path(__file__).parent
SPECIAL = SpecialTokens(speech_start=409, speech_end=410, frame=411, end_of_text=400)
CASES = json.loads((GOLDEN / "tied" / "expected.json").read_text())["prompts"]


@pytest.fixture(scope="module")
def encode():
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tokenizer")
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_prompt_equals_the_original(case, encode):
    ids, voice = generation_prompt(encode, SPECIAL, parse_script(case["text"], "golden"), case["voice_frames"])
    assert ids.tolist() == case["input_ids"]
    assert voice.tolist() == [at for at, is_voice in enumerate(case["is_voice_frame"]) if is_voice]


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_training_sequence_begins_with_the_generation_prompt(case, encode):
    row = training_sequence(encode, SPECIAL, parse_script(case["text"], "golden"), case["voice_frames"], 3)
    assert row.token_ids.tolist() == [*case["input_ids"], 411, 411, 411, 410, 400]
    start = len(case["input_ids"]) - 1
    assert row.condition_positions.tolist() == [start, start + 1, start + 2]
    assert row.token_ids[start] == SPECIAL.speech_start
