"""The text tokenizer of a model, and the ids of its control tokens.

Why: the original checkpoints hold no text tokenizer, only the name of a Qwen2.5 repository, so there is an order of
places to look in; and a tokenizer without the control tokens would train a model that no program can use.

In: a checkpoint and, if given, `--processor_name_or_path`. Out: transformers' Qwen2 tokenizer and the control tokens.
"""

from pathlib import Path

from transformers import Qwen2Tokenizer

from vibevoice_finetune.base_model.hub import TEXT_TOKENIZER, locate
from vibevoice_finetune.base_model.load import Checkpoint, read_json
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.errors import CheckpointError

_SETTINGS = "preprocessor_config.json"
_NAME_KEY = "language_model_pretrained_name"
CONTROL_TOKENS = {
    "speech_start": "<|vision_start|>",
    "speech_end": "<|vision_end|>",
    "frame": "<|vision_pad|>",
    "end_of_text": "<|endoftext|>",
}


def load_tokenizer(
    checkpoint: Checkpoint, processor_name_or_path: str | None = None, cache_dir: Path | None = None
) -> Qwen2Tokenizer:
    """Load the text tokenizer from the first of these that has one.

    1. `processor_name_or_path`: a folder or repository with a tokenizer, or with just a `preprocessor_config.json`
       that names one;
    2. the model's own folder;
    3. the repository that the `preprocessor_config.json` in the model's folder names.

    Raises:
        CheckpointError: `processor_name_or_path` leads to none, or there is none anywhere, or it cannot be downloaded.
    """
    if processor_name_or_path is not None:
        folder, _ = locate(processor_name_or_path, TEXT_TOKENIZER, cache_dir)
        return _load(_resolve(folder, cache_dir, processor_name_or_path))
    return _load(_resolve(checkpoint.folder, cache_dir, checkpoint.source))


def special_tokens(tokenizer: Qwen2Tokenizer) -> SpecialTokens:
    """The ids of the control tokens in this tokenizer.

    Raises:
        CheckpointError: it lacks some of them.
    """
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in CONTROL_TOKENS.values() if token not in vocabulary]
    if lacking:
        raise CheckpointError(
            f"{tokenizer.name_or_path}: the text tokenizer lacks {', '.join(lacking)}; expected the tokenizer of "
            "Qwen2.5; give it with --processor_name_or_path"
        )
    return SpecialTokens(**{field: vocabulary[token] for field, token in CONTROL_TOKENS.items()})


def _resolve(folder: Path, cache_dir: Path | None, source: str) -> Path:
    """The folder with the tokenizer's files: this one, or the one that its settings name."""
    if _holds_tokenizer(folder):
        return folder
    settings = folder / _SETTINGS
    if not settings.is_file():
        raise CheckpointError(
            f"{source}: no text tokenizer: found neither tokenizer.json, nor vocab.json and merges.txt, nor a "
            f"{_SETTINGS} that names one; give a folder or repository that has it with --processor_name_or_path, "
            "for example Qwen/Qwen2.5-1.5B"
        )
    name = read_json(settings).get(_NAME_KEY)
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{settings}: {_NAME_KEY} is {name!r}; expected the folder or repository of a Qwen2.5 text tokenizer; "
            "give one with --processor_name_or_path"
        )
    beside = folder / name
    if beside.is_dir():
        named = beside
    else:
        try:
            named, _ = locate(name, TEXT_TOKENIZER, cache_dir)
        except CheckpointError as error:
            raise CheckpointError(f"{settings} names the text tokenizer {error}") from error
    if not _holds_tokenizer(named):
        raise CheckpointError(
            f"{settings}: {_NAME_KEY} is {name!r}, which holds no text tokenizer (expected tokenizer.json, or "
            "vocab.json and merges.txt); give one with --processor_name_or_path"
        )
    return named


def _holds_tokenizer(folder: Path) -> bool:
    if (folder / "tokenizer.json").is_file():
        return True
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def _load(folder: Path) -> Qwen2Tokenizer:
    try:
        tokenizer: Qwen2Tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: the text tokenizer cannot be read ({' '.join(str(error).split())}); download it again"
        ) from error
    return tokenizer
