"""Where the text tokenizer comes from, and what is said when it does not come."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import Qwen2Tokenizer

from vibevoice_finetune.base_model.load import BaseModel, open_base_model
from vibevoice_finetune.base_model.random_model import write_byte_tokenizer
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.errors import BaseModelError

GOLDEN_SIZE, BYTES_SIZE = 422, 278


@pytest.fixture
def model(golden_dir: Path, tmp_path: Path) -> BaseModel:
    """A copy of a golden checkpoint: no tokenizer, and settings that name Qwen/Qwen2.5-1.5B."""
    folder = tmp_path / "model"
    shutil.copytree(golden_dir / "tied" / "checkpoint", folder)
    return open_base_model(str(folder))


def name_tokenizer(folder: Path, name: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps({"language_model_pretrained_name": name}))


def test_the_flag_goes_first(model: BaseModel, golden_dir: Path) -> None:
    write_byte_tokenizer(model.folder)
    assert len(load_tokenizer(model, str(golden_dir / "tokenizer"))) == GOLDEN_SIZE


def test_then_the_models_folder(model: BaseModel, golden_dir: Path) -> None:
    name_tokenizer(model.folder, str(golden_dir / "tokenizer"))
    write_byte_tokenizer(model.folder)
    assert len(load_tokenizer(model)) == BYTES_SIZE


def test_then_what_the_models_settings_name(model: BaseModel, golden_dir: Path) -> None:
    name_tokenizer(model.folder, str((golden_dir / "tokenizer").resolve()))
    assert len(load_tokenizer(model)) == GOLDEN_SIZE


def test_the_flag_may_lead_to_settings_alone(model: BaseModel, golden_dir: Path, tmp_path: Path) -> None:
    write_byte_tokenizer(model.folder)
    name_tokenizer(tmp_path / "processor", str((golden_dir / "tokenizer").resolve()))
    assert len(load_tokenizer(model, str(tmp_path / "processor"))) == GOLDEN_SIZE


def test_settings_may_name_a_folder_beside_them(model: BaseModel, golden_dir: Path) -> None:
    shutil.copytree(golden_dir / "tokenizer", model.folder / "text")
    name_tokenizer(model.folder, "text")
    assert len(load_tokenizer(model)) == GOLDEN_SIZE


def test_vocabulary_and_merges_are_a_tokenizer_too(model: BaseModel, golden_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slow"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(golden_dir / "tokenizer" / name, folder)
    tokenizer = load_tokenizer(model, str(folder))
    whole = load_tokenizer(model, str(golden_dir / "tokenizer"))
    text = " Speaker 0: Hello, wörld!\n"
    assert tokenizer(text).input_ids == whole(text).input_ids
    assert special_tokens(tokenizer) == special_tokens(whole)


def test_offline_names_the_repository_to_download(model: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError) as refused:
        load_tokenizer(model, cache_dir=tmp_path)
    message = str(refused.value)
    assert "preprocessor_config.json names the text tokenizer Qwen/Qwen2.5-1.5B" in message
    assert 'run: hf download Qwen/Qwen2.5-1.5B --include "*.json" --include "merges.txt"' in message
    with pytest.raises(BaseModelError, match=r"run: hf download somebody/processor"):
        load_tokenizer(model, "somebody/processor", cache_dir=tmp_path)


def test_a_downloaded_repository_is_found(model: BaseModel, golden_dir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--Qwen--Qwen2.5-1.5B"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("f" * 40)
    shutil.copytree(golden_dir / "tokenizer", repository / "snapshots" / ("f" * 40))
    assert len(load_tokenizer(model, cache_dir=tmp_path / "cache")) == GOLDEN_SIZE


def test_nothing_anywhere(model: BaseModel, tmp_path: Path) -> None:
    (model.folder / "preprocessor_config.json").unlink()
    with pytest.raises(BaseModelError, match=r"no text tokenizer: found neither .*--processor_name_or_path"):
        load_tokenizer(model)
    name_tokenizer(model.folder, None)
    with pytest.raises(BaseModelError, match="language_model_pretrained_name is None"):
        load_tokenizer(model)
    (tmp_path / "empty").mkdir()
    name_tokenizer(model.folder, str(tmp_path / "empty"))
    with pytest.raises(BaseModelError, match="which holds no text tokenizer"):
        load_tokenizer(model)
    with pytest.raises(BaseModelError, match="no such folder"):
        load_tokenizer(model, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", '{"version": ', r"tokenizer\.json: is not JSON"),
        ("tokenizer.json", "[]", r"tokenizer\.json: holds a JSON list"),
        ("tokenizer.json", '{"version": "1.0"}', "the text tokenizer cannot be read"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}', "cannot be read"),
        ("tokenizer_config.json", "null", r"tokenizer_config\.json: holds a JSON NoneType"),
        ("tokenizer_config.json", '{"eos_token": 5}', "the text tokenizer cannot be read"),
    ],
)
def test_a_broken_file_is_named(model: BaseModel, name: str, content: str, said: str) -> None:
    write_byte_tokenizer(model.folder)
    (model.folder / name).write_text(content)
    with pytest.raises(BaseModelError, match=said):
        load_tokenizer(model)


def test_a_tokenizer_larger_than_the_embedding_is_refused(model: BaseModel) -> None:
    """The golden model embeds 512 tokens."""
    write_byte_tokenizer(model.folder)
    settings = json.loads((model.folder / "tokenizer.json").read_text())
    settings["added_tokens"][-1]["id"] = 600
    vocabulary = settings["model"]["vocab"]
    vocabulary |= {f"word{number}": number for number in range(278, 600)}
    (model.folder / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(BaseModelError, match=r"has ids up to \d{3}, but the embedding of .* ends at 511"):
        load_tokenizer(model)


def test_a_vocabulary_that_lacks_bytes_is_refused(model: BaseModel, tmp_path: Path) -> None:
    Qwen2Tokenizer(vocab={"a": 0, "b": 1}, merges=[]).save_pretrained(tmp_path / "plain")
    with pytest.raises(BaseModelError, match="does not give a text back as it was"):
        load_tokenizer(model, str(tmp_path / "plain"))


def test_control_tokens_come_from_the_tokenizer(model: BaseModel, golden_dir: Path) -> None:
    assert special_tokens(load_tokenizer(model, str(golden_dir / "tokenizer"))) == SpecialTokens(409, 410, 411, 400)


def test_a_tokenizer_without_control_tokens_is_refused() -> None:
    tokenizer = Qwen2Tokenizer(vocab={"a": 0, "b": 1}, merges=[])
    with pytest.raises(BaseModelError, match=r"lacks <\|vision_start\|>, <\|vision_end\|>, <\|vision_pad\|>;"):
        special_tokens(tokenizer)


def test_control_tokens_that_share_an_id_are_refused() -> None:
    class Shared:
        name_or_path = "here"

        def get_vocab(self) -> dict[str, int]:
            return {"<|vision_start|>": 7, "<|vision_end|>": 8, "<|vision_pad|>": 8, "<|endoftext|>": 9}

    with pytest.raises(BaseModelError, match=r"control tokens share an id: .*<\|vision_end\|> 8, <\|vision_pad\|> 8"):
        special_tokens(Shared())  # type: ignore[arg-type]


def test_prompts_of_the_original(model: BaseModel, golden_dir: Path) -> None:
    """The loaded tokenizer gives the ids that the original's tokenizer gave for the same piece of text."""
    tokenizer = load_tokenizer(model, str(golden_dir / "tokenizer"))
    expected = json.loads((golden_dir / "tied" / "expected.json").read_text())["prompts"][0]["input_ids"]
    system = " Transform the text provided by various speakers into speech output, utilizing the distinct voice of each"
    ids = tokenizer(system, add_special_tokens=False).input_ids
    assert ids == expected[: len(ids)]
    assert len(ids) > 20
