"""The text tokenizer of a model, and the ids of its control tokens.

Why: models in the original layout come without a text tokenizer, with only the name of a Qwen2.5 repository, so there
is an order of places to look in; and with a tokenizer without the control tokens, no program could use the result.

In: a base model and, if given, `--processor_name_or_path`. Out: transformers' Qwen2 tokenizer and the control tokens.
"""

from dataclasses import replace
from pathlib import Path

from transformers import Qwen2Tokenizer

from vibevoice_finetune.base_model.hub import TEXT_TOKENIZER, locate
from vibevoice_finetune.base_model.load import BaseModel
from vibevoice_finetune.base_model.parts import facts
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.errors import BaseModelError, shown
from vibevoice_finetune.files.json_objects import read_json_object

_SETTINGS = "preprocessor_config.json"
_NAME_KEY = "language_model_pretrained_name"
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "special_tokens_map.json", "added_tokens.json")
_EXPECTED_TOKENIZER = "expected the tokenizer of Qwen2.5; give it with --processor_name_or_path"
_PROBE = " Speaker 0: Grüße, 你好!\n"
_REFUSALS = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
CONTROL_TOKENS = {
    "speech_start": "<|vision_start|>",
    "speech_end": "<|vision_end|>",
    "frame": "<|vision_pad|>",
    "end_of_text": "<|endoftext|>",
}


def load_tokenizer(
    base: BaseModel, processor_name_or_path: str | None = None, cache_dir: Path | None = None
) -> Qwen2Tokenizer:
    """Load the text tokenizer from the first of these that has one.

    1. `processor_name_or_path`: a folder or repository with a tokenizer, or with just a `preprocessor_config.json`
       that names one;
    2. the model's own folder;
    3. the repository that the `preprocessor_config.json` in the model's folder names.

    Raises:
        BaseModelError: `processor_name_or_path` leads to none, or there is none anywhere, or it cannot be downloaded
            or read, or it is not a tokenizer of this model.
    """
    if processor_name_or_path is not None:
        folder, _ = locate(processor_name_or_path, TEXT_TOKENIZER, cache_dir)
        folder = _resolve(folder, cache_dir, processor_name_or_path)
    else:
        folder = _resolve(base.folder, cache_dir, base.source)
    tokenizer = _load(folder)
    highest, size = max(tokenizer.get_vocab().values(), default=0), facts(base.config).vocab_size
    if highest >= size:
        raise BaseModelError(
            f"{folder}: the text tokenizer has ids up to {highest:,}, but the embedding of {base.source} ends at "
            f"{size - 1:,}; give the tokenizer of this model with --processor_name_or_path"
        )
    return tokenizer


def special_tokens(tokenizer: Qwen2Tokenizer) -> SpecialTokens:
    """The ids of the control tokens in this tokenizer.

    Raises:
        BaseModelError: it lacks some of them, or two are one.
    """
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in CONTROL_TOKENS.values() if token not in vocabulary]
    if lacking:
        raise BaseModelError(
            f"{tokenizer.name_or_path}: the text tokenizer lacks {', '.join(lacking)}; {_EXPECTED_TOKENIZER}"
        )
    special = SpecialTokens(*(vocabulary[token] for token in CONTROL_TOKENS.values()))  # in the order of its fields
    if len(set(special.ids)) < len(special.ids):
        found = ", ".join(f"{token} {vocabulary[token]}" for token in CONTROL_TOKENS.values())
        raise BaseModelError(f"{tokenizer.name_or_path}: control tokens share an id: {found}; {_EXPECTED_TOKENIZER}")
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    return replace(special, reserved=added | {vocabulary[token]: token for token in CONTROL_TOKENS.values()})


def _resolve(folder: Path, cache_dir: Path | None, source: str) -> Path:
    """The folder with the tokenizer's files: this one, or the one that its settings name."""
    if _holds_tokenizer(folder):
        return folder
    settings = folder / _SETTINGS
    if not settings.is_file():
        raise BaseModelError(
            f"{source}: no text tokenizer: found neither tokenizer.json, nor vocab.json and merges.txt, nor a "
            f"{_SETTINGS} that names one; give a folder or repository that has it with --processor_name_or_path, "
            "for example Qwen/Qwen2.5-1.5B"
        )
    name = read_json_object(settings, BaseModelError, "download it again").get(_NAME_KEY)
    if not isinstance(name, str) or not name:
        raise BaseModelError(
            f"{settings}: {_NAME_KEY} is {name!r}; expected the folder or repository of a Qwen2.5 text tokenizer; "
            "give one with --processor_name_or_path"
        )
    beside = folder / name
    if beside.is_dir():
        named = beside
    else:
        try:
            named, _ = locate(name, TEXT_TOKENIZER, cache_dir)
        except BaseModelError as error:
            raise BaseModelError(f"{settings} names the text tokenizer {error}") from error
    if not _holds_tokenizer(named):
        raise BaseModelError(
            f"{settings}: {_NAME_KEY} is {name!r}, which holds no text tokenizer (expected tokenizer.json, or "
            "vocab.json and merges.txt); give one with --processor_name_or_path"
        )
    return named


def _holds_tokenizer(folder: Path) -> bool:
    if (folder / "tokenizer.json").is_file():
        return True
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def _load(folder: Path) -> Qwen2Tokenizer:
    for name in _JSON_FILES:
        if (folder / name).is_file():
            read_json_object(folder / name, BaseModelError, "download the text tokenizer again")
    try:
        tokenizer: Qwen2Tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
        back = tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False), clean_up_tokenization_spaces=False)
    except Exception as error:
        # The tokenizers library raises a bare `Exception` for most of what can be wrong with its file.
        if type(error) is Exception or isinstance(error, _REFUSALS):
            raise BaseModelError(
                f"{folder}: the text tokenizer cannot be read ({type(error).__name__}: "
                f"{shown(' '.join(str(error).split()))}); download it again"
            ) from error
        raise
    if back != _PROBE:
        raise BaseModelError(
            f"{folder}: the text tokenizer does not give a text back as it was: {_PROBE!r} became {shown(repr(back))}; "
            f"{_EXPECTED_TOKENIZER}"
        )
    return tokenizer
