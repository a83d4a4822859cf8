"""Opening and loading checkpoints: both layouts, exactly the parts that are asked for, and fingerprints."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VibeVoiceForConditionalGeneration

from vibevoice_finetune.base_model import load as checkpoint_room
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.load import (
    BaseModel,
    encoder_fingerprint,
    load_encoders,
    load_for_generation,
    load_for_training,
    model_fingerprint,
    open_base_model,
    weight_index,
    with_special_tokens,
)
from vibevoice_finetune.base_model.weights import lazy_tensors, read_tensors, write_weights
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.errors import BaseModelError
from vibevoice_finetune.files.headers import StoredTensor
from vibevoice_finetune.latents.shards import Part

GOLDEN_TOKENS = SpecialTokens(speech_start=409, speech_end=410, frame=411, end_of_text=400)


@pytest.fixture(scope="module", params=["tied", "untied"])
def original(request: pytest.FixtureRequest, golden_dir: Path) -> BaseModel:
    return open_base_model(str(golden_dir / request.param / "checkpoint"))


@pytest.fixture(scope="module")
def whole(original: BaseModel) -> VibeVoiceForConditionalGeneration:
    return load_for_generation(original, torch.float32, "cpu")


@pytest.fixture(scope="module")
def tied(golden_dir: Path) -> BaseModel:
    return open_base_model(str(golden_dir / "tied" / "checkpoint"))


def write_native(checkpoint: BaseModel, folder: Path, max_shard_bytes: int = 10**9) -> BaseModel:
    """The same checkpoint in the native layout."""
    write_weights(folder, read_tensors(weight_index(checkpoint).tensors), max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(checkpoint.config.to_dict()))
    return open_base_model(str(folder))


def altered(source: Path, folder: Path, **changes: Tensor | None) -> BaseModel:
    """A copy of an original checkpoint with tensors replaced, added or (None) removed; `__` stands for a dot."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    return open_base_model(str(folder))


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    weights = one.state_dict()
    others = other.state_dict()
    assert list(weights) == list(others)
    for name, tensor in weights.items():
        assert tensor.dtype == others[name].dtype
        assert torch.equal(tensor, others[name]), name


# --- opening ---


def test_open_reads_the_configuration(original: BaseModel) -> None:
    assert original.layout is Layout.ORIGINAL
    assert original.repository is None
    assert original.raw_config["decoder_config"]["vocab_size"] == 512
    assert original.config.vocab_size == 512


def test_open_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no such folder"):
        open_base_model(str(tmp_path / "nowhere"))
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        open_base_model(str(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match=rf"no config\.json \(did you mean {tmp_path}/sub\?\)"):
        open_base_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="holds an adapter, not a model"):
        open_base_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(BaseModelError, match=r"config\.json: is not JSON"):
        open_base_model(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(BaseModelError, match="holds a JSON list; expected an object"):
        open_base_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(BaseModelError, match="not VibeVoice: found model_type 'qwen2'"):
        open_base_model(str(tmp_path))
    with pytest.raises(BaseModelError, match="is a file"):
        open_base_model(str(tmp_path / "config.json"))


def test_open_offline_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"run: hf download microsoft/VibeVoice-1\.5B$"):
        open_base_model("microsoft/VibeVoice-1.5B", cache_dir=tmp_path)


def test_open_from_the_hubs_cache(tied: BaseModel, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--voice"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tied.folder, repository / "snapshots" / commit)
    cached = open_base_model("somebody/voice", cache_dir=tmp_path)
    assert cached.repository is not None
    assert (cached.repository.repo_id, cached.repository.revision) == ("somebody/voice", commit)
    assert set(weight_index(cached).tensors) == set(weight_index(tied).tensors)


def test_other_sampling_rates_and_schedules_are_refused(golden_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(golden_dir / "tied" / "checkpoint", folder)
    (folder / "generation_config.json").write_text('{"noise_scheduler_config": {"beta_schedule": "linear"}}')
    with pytest.raises(BaseModelError, match="beta_schedule is 'linear'"):
        open_base_model(str(folder))
    (folder / "preprocessor_config.json").write_text('{"audio_processor": {"sampling_rate": 16000}}')
    with pytest.raises(BaseModelError, match="sampling_rate is 16000"):
        open_base_model(str(folder))


# --- layouts ---


def test_both_layouts_load_the_same_model(
    original: BaseModel, whole: VibeVoiceForConditionalGeneration, tmp_path: Path
) -> None:
    native = write_native(original, tmp_path / "native", max_shard_bytes=100_000)
    assert native.layout is Layout.NATIVE
    assert len(list(native.folder.glob("*.safetensors"))) > 3
    assert_same_weights(load_for_generation(native, torch.float32, "cpu"), whole)
    assert encoder_fingerprint(native) == encoder_fingerprint(original)
    assert model_fingerprint(native) == model_fingerprint(original)


def test_what_transformers_saves_is_opened(
    original: BaseModel, whole: VibeVoiceForConditionalGeneration, tmp_path: Path
) -> None:
    whole.save_pretrained(tmp_path)
    saved = open_base_model(str(tmp_path))
    assert saved.layout is Layout.NATIVE
    assert model_fingerprint(saved) == model_fingerprint(original)
    assert encoder_fingerprint(saved) == encoder_fingerprint(original)
    assert_same_weights(VibeVoiceForConditionalGeneration.from_pretrained(tmp_path), whole)


# --- what is loaded, and into what ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_holds_no_tokenizer(
    original: BaseModel, whole: VibeVoiceForConditionalGeneration, dtype: torch.dtype
) -> None:
    model = load_for_training(original, dtype, "cpu")
    weights = whole.state_dict()
    expected = {name for name in weights if "audio_tower" not in name and "semantic_tokenizer" not in name}
    assert set(model.state_dict()) == expected
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, weights[name].to(dtype))
    tied = parts.lm_head(model).weight is parts.embed_tokens(model).weight
    assert tied == parts.facts(original.config).tied


def test_only_what_is_needed_is_read(tied: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    @contextmanager
    def watched(tensors: Mapping[str, StoredTensor], *, mapped: bool) -> Iterator[dict[str, Any]]:
        asked.extend(stored.name for stored in tensors.values())
        with lazy_tensors(tensors, mapped=mapped) as slices:
            yield slices

    monkeypatch.setattr(checkpoint_room, "lazy_tensors", watched)
    load_for_training(tied, torch.float32, "cpu")
    assert asked
    assert not any("tokenizer" in name for name in asked)
    asked.clear()
    encoders = load_encoders(tied, torch.float32, "cpu")
    for part, name in ((Part.ACOUSTIC, "acoustic_tokenizer.encoder."), (Part.SEMANTIC, "semantic_tokenizer.encoder.")):
        assert asked == []  # nothing before it is asked for, and then one encoder alone
        encoders.network(part)
        assert asked
        assert all(name in asked_for for asked_for in asked)
        asked.clear()


def test_frequencies_stay_float32(original: BaseModel) -> None:
    model = load_for_training(original, torch.bfloat16, "cpu")
    buffers = dict(model.named_buffers())
    text = original.raw_config["decoder_config"]
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    rotary = text["rope_theta"] ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    timestep = 10_000.0 ** -(torch.arange(128, dtype=torch.float64) / 128)
    for name, expected in (
        ("model.language_model.rotary_emb.inv_freq", rotary),
        ("model.diffusion_head.timestep_embedding.freq", timestep),
    ):
        assert buffers[name].dtype == torch.float32
        torch.testing.assert_close(buffers[name].double(), expected, rtol=1e-6, atol=0)


def test_latent_scale_and_bias_are_numbers(original: BaseModel) -> None:
    model = load_for_training(original, torch.float32, "cpu")
    stored = load_file(original.folder / "model.safetensors")
    assert parts.latent_scale(model).shape == parts.latent_bias(model).shape == ()
    assert parts.latent_scale(model) == stored["model.speech_scaling_factor"]
    assert parts.latent_bias(model) == stored["model.speech_bias_factor"]


def test_encoders_alone(tied: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = load_encoders(tied, torch.float32, "cpu")
    facts = parts.facts(tied.config)
    assert (encoders.hop_length, encoders.acoustic_dim, encoders.semantic_dim) == (
        facts.hop_length,
        facts.acoustic_dim,
        facts.semantic_dim,
    )
    generator = torch.Generator().manual_seed(0)
    waveform_BN = torch.randn(2, 5 * facts.hop_length, generator=generator)
    acoustic_BFC, semantic_BFS = (encoders.encode(part, waveform_BN) for part in Part)
    assert acoustic_BFC.shape == (2, 5, facts.acoustic_dim)
    assert semantic_BFS.shape == (2, 5, facts.semantic_dim)
    # Zeros at the end, as a batch of clips of several lengths has them, change nothing before them.
    longer_BN = torch.nn.functional.pad(waveform_BN, (0, 2 * facts.hop_length))
    torch.testing.assert_close(encoders.encode(Part.ACOUSTIC, longer_BN)[:, :5], acoustic_BFC)
    # A long clip goes through in pieces, with the same result.
    monkeypatch.setattr(checkpoint_room, "ENCODED_AT_ONCE_FRAMES", 2)
    for part, whole in ((Part.ACOUSTIC, acoustic_BFC), (Part.SEMANTIC, semantic_BFS)):
        torch.testing.assert_close(encoders.encode(part, waveform_BN), whole)
    # So do many rows, in groups.
    monkeypatch.setattr(checkpoint_room, "ENCODED_AT_ONCE_BYTES", 1)
    torch.testing.assert_close(encoders.encode(Part.ACOUSTIC, waveform_BN), acoustic_BFC)
    with pytest.raises(AssertionError, match="whole frames"):
        encoders.encode(Part.ACOUSTIC, waveform_BN[:, 1:])


def test_encoders_in_bf16_give_float32(tied: BaseModel) -> None:
    hop_length = parts.facts(tied.config).hop_length
    waveform_BN = torch.randn(1, 3 * hop_length, generator=torch.Generator().manual_seed(0))
    exact_BFC = load_encoders(tied, torch.float32, "cpu").encode(Part.ACOUSTIC, waveform_BN)
    rounded_BFC = load_encoders(tied, torch.bfloat16, "cpu").encode(Part.ACOUSTIC, waveform_BN)
    assert rounded_BFC.dtype == torch.float32
    difference = (rounded_BFC - exact_BFC).norm() / exact_BFC.norm()
    assert 0 < difference < 0.05


# --- what is refused ---


def test_missing_and_left_over_weights_are_listed(golden_dir: Path, tmp_path: Path) -> None:
    source = golden_dir / "untied" / "checkpoint"
    broken = altered(
        source,
        tmp_path / "model",
        lm_head__weight=None,
        model__prediction_head__cond_proj__weight=None,
        model__acoustic_tokenizer__decoder__head__conv__conv__bias=None,
        model__prediction_head__layers__9__norm__weight=torch.ones(48),
    )
    for load in (load_for_training, load_for_generation, load_encoders):  # whatever part is asked for
        with pytest.raises(BaseModelError) as refused:
            load(broken, torch.float32, "cpu")
        message = str(refused.value)
        assert "3 missing: " in message
        for name in (
            "lm_head.weight",
            "model.prediction_head.cond_proj.weight",
            "model.acoustic_tokenizer.decoder.head.conv.conv.bias",
        ):
            assert name in message
        assert "1 left over: model.prediction_head.layers.9.norm.weight" in message


def test_native_weights_are_checked_too(golden_dir: Path, tmp_path: Path) -> None:
    native = write_native(open_base_model(str(golden_dir / "tied" / "checkpoint")), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.multi_modal_projector.act.weight"]
    tensors["model.diffusion_head.cond_proj.weight"] = torch.zeros(64, 65)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BaseModelError) as refused:
        load_for_training(native, torch.float32, "cpu")
    assert "1 missing: model.multi_modal_projector.act.weight" in str(refused.value)
    assert "model.diffusion_head.cond_proj.weight is (64, 65), expected (64, 64)" in str(refused.value)


def test_original_weights_under_a_native_configuration_are_refused(tied: BaseModel, tmp_path: Path) -> None:
    native = write_native(tied, tmp_path / "native")
    shutil.copy(tied.folder / "model.safetensors", native.folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"left over: .*model\.acoustic_"):
        load_for_training(native, torch.float32, "cpu")


def test_tied_output_matrix_in_the_file(golden_dir: Path, tmp_path: Path) -> None:
    source = golden_dir / "tied" / "checkpoint"
    embedding = load_file(source / "model.safetensors")["model.language_model.embed_tokens.weight"]
    equal = altered(source, tmp_path / "equal", lm_head__weight=embedding.clone())
    assert model_fingerprint(equal) == model_fingerprint(open_base_model(str(source)))
    model = load_for_training(equal, torch.float32, "cpu")
    assert parts.lm_head(model).weight is parts.embed_tokens(model).weight
    other = altered(source, tmp_path / "other", lm_head__weight=embedding * 1.01)
    with pytest.raises(BaseModelError, match=r"lm_head\.weight differs from"):
        load_for_training(other, torch.float32, "cpu")


# --- fingerprints ---


class Digests(NamedTuple):
    model: str
    encoders: str


@pytest.fixture(scope="module")
def tied_digests(tied: BaseModel) -> Digests:
    return Digests(model_fingerprint(tied), encoder_fingerprint(tied))


@pytest.mark.parametrize(
    ("name", "moves_model", "moves_encoders"),
    [
        ("model.language_model.layers.0.self_attn.q_proj.bias", True, False),
        ("model.language_model.embed_tokens.weight", True, False),
        ("model.prediction_head.final_layer.linear.weight", True, False),
        ("model.acoustic_connector.fc1.bias", True, False),
        ("model.speech_bias_factor", True, False),
        ("model.acoustic_tokenizer.encoder.head.conv.conv.bias", False, True),
        ("model.semantic_tokenizer.encoder.stages.0.0.gamma", False, True),
        ("model.acoustic_tokenizer.decoder.head.conv.conv.bias", False, False),
    ],
)
def test_fingerprints_tell_the_parts_apart(
    name: str, moves_model: bool, moves_encoders: bool, tied: BaseModel, tied_digests: Digests, tmp_path: Path
) -> None:
    tensor = load_file(tied.folder / "model.safetensors")[name].clone()
    tensor.view(-1)[-1] += 1e-6  # the last element, by a hair
    after = altered(tied.folder, tmp_path / "model", **{name: tensor})
    assert (model_fingerprint(after) != tied_digests.model) == moves_model
    assert (encoder_fingerprint(after) != tied_digests.encoders) == moves_encoders


def test_fingerprints_of_different_models_differ(golden_dir: Path) -> None:
    checkpoints = [open_base_model(str(golden_dir / kind / "checkpoint")) for kind in ("tied", "untied")]
    digests = [fingerprint(one) for one in checkpoints for fingerprint in (model_fingerprint, encoder_fingerprint)]
    assert len(set(digests)) == 4
    assert all(len(digest) == 32 for digest in digests)


# --- generation ---


def test_token_ids_come_from_the_tokenizer(original: BaseModel) -> None:
    config = with_special_tokens(original, GOLDEN_TOKENS).config
    assert (config.audio_bos_token_id, config.audio_eos_token_id, config.audio_token_id) == (409, 410, 411)
    assert (config.eos_token_id, config.pad_token_id) == (400, 400)
    assert original.config.audio_bos_token_id == 151652, "the checkpoint that was given is left as it was"
    with pytest.raises(BaseModelError, match=r"ids up to 512, the model's vocabulary ends at 511"):
        with_special_tokens(original, SpecialTokens(512, 410, 411, 400))


def test_generate_runs_on_what_was_loaded(tied: BaseModel) -> None:
    pytest.importorskip("diffusers")
    model = load_for_generation(with_special_tokens(tied, GOLDEN_TOKENS), torch.float32, "cpu")
    assert model.generation_config.guidance_scale == 1.3
    assert model.generation_config.num_diffusion_steps == 10
    prompt = torch.tensor([[1, 2, 3, 409]])
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        num_diffusion_steps=2,
        guidance_scale=1.0,
        return_dict_in_generate=True,
    )
    new_tokens = output.sequences[0, 4:].tolist()
    assert new_tokens
    assert set(new_tokens) <= set(GOLDEN_TOKENS.ids)
    frames = new_tokens.count(411)
    hop_length = parts.facts(tied.config).hop_length
    assert (0 if output.audio[0] is None else output.audio[0].shape[-1]) == frames * hop_length
