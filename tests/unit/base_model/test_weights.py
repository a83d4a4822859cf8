"""Files of weights: looked through, compared with the configuration, rewritten."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.weights import (
    INDEX_FILE,
    SINGLE_FILE,
    WeightIndex,
    check_weights,
    index_weights,
    read_tensors,
    write_weights,
)
from vibevoice_finetune.errors import BaseModelError
from vibevoice_finetune.files.atomic import WriteError, writing_folder

SCALE = "model.latent_scaling_factor"
SHAPES: dict[str, tuple[int, ...]] = {
    "model.language_model.embed_tokens.weight": (5, 3),
    "model.semantic_connector.linear_1.bias": (3,),
    SCALE: (),
}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def stored(folder: Path, content: dict[str, Tensor]) -> WeightIndex:
    write_weights(folder, content.items())
    return index_weights(folder, Layout.NATIVE)


@pytest.mark.parametrize("wrapped", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "_orig_mod.module.{}"])
def test_what_wrappers_add_to_names_is_left_out(wrapped: str, tmp_path: Path) -> None:
    saved = tensors()
    index = stored(tmp_path, {wrapped.format(name): tensor for name, tensor in saved.items()})
    assert index.unnamed == ()
    checked = check_weights(index, SHAPES)
    read = dict(read_tensors(checked.tensors))
    assert read.keys() == saved.keys()
    assert all(torch.equal(read[name], saved[name]) for name in saved)


def test_index_of_original_names(tmp_path: Path) -> None:
    write_weights(
        tmp_path,
        [
            ("model.semantic_connector.fc1.bias", torch.zeros(3)),
            ("model.speech_scaling_factor", torch.tensor(2.0, dtype=torch.bfloat16)),
            ("model.surprise", torch.zeros(1)),
        ],
    )
    index = index_weights(tmp_path, Layout.ORIGINAL)
    assert set(index.tensors) == {"model.semantic_connector.linear_1.bias", SCALE}
    assert index.tensors[SCALE].name == "model.speech_scaling_factor"
    assert index.tensors[SCALE].shape == ()
    assert index.tensors[SCALE].dtype == "BF16"
    assert index.unnamed == ("model.surprise",)
    assert set(index.block("model.semantic_connector.")) == {"model.semantic_connector.linear_1.bias"}


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    content = {f"model.language_model.layers.{i}.input_layernorm.weight": torch.full((8,), float(i)) for i in range(5)}
    write_weights(tmp_path / "one", content.items())
    written = write_weights(tmp_path / "three", content.items(), max_shard_bytes=64)  # two tensors of 32 bytes a file
    assert [path.name for path in written] == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        INDEX_FILE,
    ]
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == sorted(path.name for path in written)
    assert [path.name for path in (tmp_path / "one").iterdir()] == [SINGLE_FILE]
    assert json.loads(written[-1].read_text())["metadata"]["total_size"] == 5 * 32
    for folder in ("one", "three"):
        read = dict(read_tensors(index_weights(tmp_path / folder, Layout.NATIVE).tensors))
        assert {name: tensor.tolist() for name, tensor in read.items()} == {
            name: tensor.tolist() for name, tensor in content.items()
        }


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "model.language_model.norm.weight", torch.zeros(100)
        yield "model.language_model.norm.bias", torch.zeros(100)
        raise OSError("disk full")

    with pytest.raises(WriteError, match="disk full"), writing_folder(tmp_path / "model") as staging:
        write_weights(staging, broken(), max_shard_bytes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_shard_bytes", [1, 1000])
def test_weights_are_never_mixed_with_others(max_shard_bytes: int, tmp_path: Path) -> None:
    write_weights(tmp_path, tensors().items(), max_shard_bytes)
    with pytest.raises(BaseModelError, match="already holds a model's weights"):
        write_weights(tmp_path, tensors().items())


def test_whole_weights_pass(tmp_path: Path) -> None:
    index = stored(tmp_path, tensors())
    assert set(check_weights(index, SHAPES).tensors) == set(SHAPES)


def test_missing_left_over_and_misshapen_are_all_listed(tmp_path: Path) -> None:
    content = tensors()
    del content["model.semantic_connector.linear_1.bias"]
    content["model.language_model.embed_tokens.weight"] = torch.zeros(5, 4)
    content["model.extra"] = torch.zeros(1)
    with pytest.raises(BaseModelError) as refused:
        check_weights(stored(tmp_path, content), SHAPES)
    message = str(refused.value)
    assert "1 missing: model.semantic_connector.linear_1.bias" in message
    assert "1 left over: model.extra" in message
    assert "model.language_model.embed_tokens.weight is (5, 4), expected (5, 3)" in message
    assert str(tmp_path / SINGLE_FILE) in message
    assert "\n" not in message


def test_missing_tensors_are_called_what_the_files_would_call_them(tmp_path: Path) -> None:
    write_weights(tmp_path, [("model.speech_scaling_factor", torch.tensor(1.0))])
    with pytest.raises(BaseModelError, match=r"2 missing: .*model\.semantic_connector\.fc1\.bias;"):
        check_weights(index_weights(tmp_path, Layout.ORIGINAL), SHAPES)


def test_names_that_no_model_has_are_left_over(tmp_path: Path) -> None:
    index = stored(tmp_path, tensors())
    with pytest.raises(BaseModelError, match=r"1 left over: model\.surprise"):
        check_weights(replace(index, unnamed=("model.surprise",)), SHAPES)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    content = tensors() | {f"stranger.{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(BaseModelError, match=r"50 left over: .* and 30 more"):
        check_weights(stored(tmp_path, content), SHAPES)


def test_tied_output_matrix_may_stand_in_the_file_if_it_is_equal(tmp_path: Path) -> None:
    content = tensors()
    content["lm_head.weight"] = content["model.language_model.embed_tokens.weight"].clone()
    assert set(check_weights(stored(tmp_path / "equal", content), SHAPES).tensors) == set(SHAPES)
    content["lm_head.weight"][4, 2] += 1e-3
    with pytest.raises(BaseModelError, match=r"differs from .*embed_tokens.*tie_word_embeddings"):
        check_weights(stored(tmp_path / "other", content), SHAPES)


def test_untied_output_matrix_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"1 missing: lm_head\.weight"):
        check_weights(stored(tmp_path, tensors()), SHAPES | {"lm_head.weight": (5, 3)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_an_unusable_scale_is_refused(value: float, tmp_path: Path) -> None:
    content = tensors() | {SCALE: torch.tensor(value)}
    with pytest.raises(BaseModelError, match=r"model\.latent_scaling_factor is .*expected a finite number"):
        check_weights(stored(tmp_path, content), SHAPES)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no weights: found none"):
        index_weights(tmp_path, Layout.NATIVE)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(BaseModelError, match=r"no weights: found pytorch_model\.bin.*convert"):
        index_weights(tmp_path, Layout.NATIVE)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_weights(tmp_path, tensors().items())
    file = tmp_path / SINGLE_FILE
    whole = file.read_bytes()
    for length in (0, 5, 60, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(BaseModelError, match=rf"model\.safetensors: not a complete .*found {length:,} bytes"):
            index_weights(tmp_path, Layout.NATIVE)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    files = write_weights(tmp_path, tensors().items(), max_shard_bytes=1)
    files[1].unlink()
    with pytest.raises(BaseModelError, match=r"1 of 3 shards missing: model-00002-of-00003\.safetensors"):
        index_weights(tmp_path, Layout.NATIVE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[]", "holds a JSON list"),
        ("{}", "weight_map is missing or empty"),
        ('{"weight_map": 3}', "weight_map is missing or empty"),
        ('{"weight_map": {"a": 1}}', "weight_map says that a is in 1; expected the name of a"),
        ('{"weight_map": {"a": "model.bin"}}', "a is in 'model.bin'; expected"),
        ('{"weight_map": {"a": "/etc/model.safetensors"}}', "expected the name of a .safetensors file in this folder"),
        ('{"weight_map": {"a": "sub/model.safetensors"}}', "expected the name of a .safetensors file in this folder"),
    ],
)
def test_a_broken_index_is_named(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(BaseModelError, match=re.escape(said)):
        index_weights(tmp_path, Layout.NATIVE)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    save_file(tensors(), outside)
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(SHAPES, "../outside.safetensors")}))
    with pytest.raises(BaseModelError, match=r"is in '\.\./outside\.safetensors'; expected the name"):
        index_weights(inside, Layout.NATIVE)


def test_the_same_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({SCALE: torch.tensor(1.0)}, tmp_path / name)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {SCALE: "a.safetensors", "x": "b.safetensors"}}))
    with pytest.raises(BaseModelError, match=r"b\.safetensors: model\.latent_scaling_factor is the same tensor"):
        index_weights(tmp_path, Layout.NATIVE)


def test_reading_leaves_the_types_alone(tmp_path: Path) -> None:
    content = {SCALE: torch.tensor(0.3, dtype=torch.bfloat16), "model.latent_bias_factor": torch.tensor(0.1)}
    index = stored(tmp_path, content)
    assert {name: tensor.dtype for name, tensor in read_tensors(index.tensors)} == {
        SCALE: torch.bfloat16,
        "model.latent_bias_factor": torch.float32,
    }
    assert load_file(tmp_path / SINGLE_FILE)[SCALE].dtype == torch.bfloat16
