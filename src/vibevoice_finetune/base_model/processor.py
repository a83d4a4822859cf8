"""The small files beside a model's weights: what each layout's readers need to turn text and voices into its input.

Why: the native layout's processor wants a chat template, and transformers ships none. The one here makes, of a
conversation, the very pieces that `data/prompt.py` makes of a script, so that a model which is loaded without this
package hears what it was trained on. The original layout's processor wants the name of a Qwen2.5 repository instead.

In: a configuration and a text tokenizer. Out: files in a folder.
"""

import copy
import json
from pathlib import Path

from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    VibeVoiceAcousticTokenizerFeatureExtractor,
    VibeVoiceConfig,
    VibeVoiceProcessor,
)

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.base_model.config import generation_settings
from vibevoice_finetune.base_model.original_config import Json
from vibevoice_finetune.base_model.parts import facts
from vibevoice_finetune.base_model.tokenizer import CONTROL_TOKENS
from vibevoice_finetune.data.prompt import SPEECH_HEADING, SYSTEM_PIECE, TEXT_HEADING, VOICE_HEADING

PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
TEMPLATE_FILE = "chat_template.jinja"

# The text tokenizers of the released models, by the hidden size of the Qwen2.5 that they grew from.
_TEXT_TOKENIZERS = {1536: "Qwen/Qwen2.5-1.5B", 3584: "Qwen/Qwen2.5-7B"}


def _quoted(text: str) -> str:
    return "{{ " + json.dumps(text) + " }}"


# A message is a turn: `role` is the speaker's number, `content` the text, or a list of parts of which some are text and
# one may be audio, that speaker's voice. transformers hands the audio over in the order of the messages, so voices are
# named in that order too; a message with nothing but audio is a voice and no turn.
CHAT_TEMPLATE = (
    _quoted(SYSTEM_PIECE)
    + "{%- set heard = namespace(heading=false) -%}"
    + "{%- for message in messages -%}"
    + "{%- if message.content is not string -%}"
    + "{%- for part in message.content if part.type == 'audio' -%}"
    + "{%- if not heard.heading -%}"
    + _quoted(VOICE_HEADING)
    + "{%- set heard.heading = true -%}{%- endif -%}"
    + "{{ ' Speaker ' ~ message.role ~ ':"
    + "".join(CONTROL_TOKENS[name] for name in ("speech_start", "frame", "speech_end"))
    + "\\n' }}"
    + "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    + _quoted(TEXT_HEADING)
    + "{%- for message in messages -%}"
    + "{%- if message.content is string -%}"
    + "{{ ' Speaker ' ~ message.role ~ ': ' ~ (message.content | trim) ~ '\\n' }}"
    + "{%- else -%}"
    + "{%- for part in message.content if part.type == 'text' -%}"
    + "{{ ' Speaker ' ~ message.role ~ ': ' ~ (part.text | trim) ~ '\\n' }}"
    + "{%- endfor -%}{%- endif -%}{%- endfor -%}"
    + _quoted(SPEECH_HEADING + CONTROL_TOKENS["speech_start"])
)


def write_native_files(folder: Path, config: VibeVoiceConfig, tokenizer: Qwen2Tokenizer) -> None:
    """Write what `AutoProcessor` and `generate()` of transformers read beside the weights and `config.json`.

    Args:
        folder: where they go.
        config: with the tokenizer's token ids, see `load.with_special_tokens`.
        tokenizer: its own chat template, which is for a text model, is left out.
    """
    text_tokenizer = copy.deepcopy(tokenizer)
    text_tokenizer.chat_template = None
    feature_extractor = VibeVoiceAcousticTokenizerFeatureExtractor(
        sampling_rate=SAMPLING_RATE_HZ, pad_to_multiple_of=facts(config).hop_length
    )
    feature_extractor.save_pretrained(folder)
    VibeVoiceProcessor(feature_extractor, text_tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    GenerationConfig(**generation_settings(config)).save_pretrained(folder)


def write_original_files(folder: Path, config: VibeVoiceConfig, tokenizer: Qwen2Tokenizer | None) -> None:
    """Write what the readers of the original layout read beside the weights and `config.json`.

    Args:
        folder: where they go.
        config: of the model.
        tokenizer: written beside them, so that this package needs no download; the original's readers look it up
            by its name.
    """
    text_tokenizer_name = _TEXT_TOKENIZERS.get(facts(config).hidden_size, _TEXT_TOKENIZERS[1536])
    preprocessor = original_preprocessor(config, text_tokenizer_name)
    (folder / PREPROCESSOR_FILE).write_text(json.dumps(preprocessor, indent=1), encoding="utf-8")
    if tokenizer is not None:
        text_tokenizer = copy.deepcopy(tokenizer)
        text_tokenizer.chat_template = None
        text_tokenizer.save_pretrained(folder)


def original_preprocessor(config: VibeVoiceConfig, text_tokenizer_name: str) -> Json:
    """The `preprocessor_config.json` of the original layout.

    Args:
        config: of the model.
        text_tokenizer_name: a Hub id; the original's readers accept no name without "qwen" in it. This package takes
            the tokenizer in the model's own folder first.
    """
    return {
        "processor_class": "VibeVoiceProcessor",
        "speech_tok_compress_ratio": facts(config).hop_length,
        "db_normalize": True,
        "audio_processor": {
            "feature_extractor_type": "VibeVoiceTokenizerProcessor",
            "sampling_rate": SAMPLING_RATE_HZ,
            "normalize_audio": True,
            "target_dB_FS": -25,
            "eps": 1e-06,
        },
        "language_model_pretrained_name": text_tokenizer_name,
    }
