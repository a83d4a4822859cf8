"""The chat template says to transformers' own processor exactly what `data/prompt.py` says to the model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor, VibeVoiceProcessor

from vibevoice_finetune.base_model.load import open_base_model, with_special_tokens
from vibevoice_finetune.base_model.processor import write_native_files, write_original_files
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.data.prompt import generation_prompt
from vibevoice_finetune.data.script import parse_script

HOP = 40  # samples a frame in the golden "tied" model


@pytest.fixture(scope="module")
def native_dir(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native")
    checkpoint = open_base_model(str(golden_dir / "tied" / "checkpoint"))
    tokenizer = load_tokenizer(checkpoint, str(golden_dir / "tokenizer"))
    tokenizer.chat_template = "{{ 'the template of a text model' }}"  # as the tokenizer of Qwen2.5 has one
    checkpoint = with_special_tokens(checkpoint, special_tokens(tokenizer))
    checkpoint.config.save_pretrained(folder)
    write_native_files(folder, checkpoint.config, tokenizer)
    assert tokenizer.chat_template is not None  # the caller's is left as it was
    return folder


@pytest.fixture(scope="module")
def processor(native_dir: Path) -> VibeVoiceProcessor:
    loaded = AutoProcessor.from_pretrained(native_dir)
    assert isinstance(loaded, VibeVoiceProcessor)
    return loaded


def voice(num_samples: int) -> dict[str, Any]:
    rng = np.random.default_rng(num_samples)
    return {"type": "audio", "audio": rng.standard_normal(num_samples).astype(np.float32)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


ONE = "Speaker 0: Hello there."
TWO = "Speaker 0: Hello there.\nSpeaker 1: Good day, isn't it?\nSpeaker 0: 42 \u2013 na\u00efve"
# 170 samples are 4 frames and a bit: 5; 80 are 2.
CASES = {
    "one speaker": (ONE, [], [{"role": "0", "content": [text("Hello there.")]}]),
    "one speaker, plain content": (ONE, [], [{"role": "0", "content": " Hello there. "}]),
    "one speaker, a number for a role": (ONE, [], [{"role": 0, "content": [text("Hello there.")]}]),
    "one speaker with a voice": (ONE, [5], [{"role": "0", "content": [text("Hello there."), voice(170)]}]),
    "two speakers": (
        TWO,
        [],
        [
            {"role": "0", "content": [text("Hello there.")]},
            {"role": "1", "content": [text("Good day, isn't it?")]},
            {"role": "0", "content": [text("42 \u2013 na\u00efve")]},
        ],
    ),
    "two speakers with voices": (
        TWO,
        [5, 2],
        [
            {"role": "0", "content": [text("Hello there."), voice(170)]},
            {"role": "1", "content": [voice(80), text("Good day, isn't it?")]},
            {"role": "0", "content": "42 \u2013 na\u00efve"},
        ],
    ),
    "voices first, speaker 1 begins": (
        "Speaker 1: Hello there.\nSpeaker 0: Good day.",
        [5, 2],
        [
            {"role": "0", "content": [voice(170)]},
            {"role": "1", "content": [voice(80), text("Hello there.")]},
            {"role": "0", "content": [text("Good day.")]},
        ],
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_the_template_makes_our_prompt_token_for_token(case: str, processor: VibeVoiceProcessor) -> None:
    script, voice_frames, conversation = CASES[case]
    tokenizer = processor.tokenizer
    encode = partial(tokenizer.encode, add_special_tokens=False)
    expected, voice_positions = generation_prompt(
        encode, special_tokens(tokenizer), parse_script(script, "here"), voice_frames
    )
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    ids = [int(token) for token in inputs["input_ids"][0]]
    assert ids == expected.tolist()
    frames = [position for position, token in enumerate(ids) if token == processor.audio_token_id]
    assert frames == voice_positions.tolist()
    assert ("input_values" in inputs) == bool(voice_frames)


def test_voices_are_padded_to_the_models_frames(processor: VibeVoiceProcessor) -> None:
    assert processor.feature_extractor.pad_to_multiple_of == HOP
    assert processor.feature_extractor.sampling_rate == 24_000


def test_the_originals_settings_are_those_of_the_released_models(golden_dir: Path, tmp_path: Path) -> None:
    source = golden_dir / "tied" / "checkpoint"
    write_original_files(tmp_path, open_base_model(str(source)).config, None)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written == json.loads((source / "preprocessor_config.json").read_text())
