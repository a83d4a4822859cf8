"""However an adapter gets into the model, the model is the same: hidden states, scores of the tokens, audio.

A new way in is a function of the base model and the adapter folder, and a line in `WAYS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import VibeVoiceForConditionalGeneration

from tests.invariants.listening import Heard, run
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, merge, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.lora import has_lora
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.load import model_fingerprint, open_base_model
from vibevoice_finetune.export.merge import ExportRequest, export
from vibevoice_finetune.generation.generate import (
    Generation,
    GenerationRequest,
    ModelSource,
    SpeechModel,
    load_speech_model,
)
from vibevoice_finetune.generation.scripts import Script, script_from_text

TOLERANCE = 1e-4
"""Of the largest number of a tensor, if that is above 1: later frames are made of earlier ones, rounding and all."""

FRAMES = (5, 3)
SCRIPTS: tuple[Script, ...] = (
    script_from_text("Hello there."),
    script_from_text("Speaker 1: Good day.\nSpeaker 2: And to you."),
)
BASE = AdapterPlan(
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.1,
    lora_target_modules=("q_proj", "v_proj", "down_proj"),
    head="full",
    train_connectors=True,
)
PLANS = {
    "LoRA everywhere": replace(BASE, head="lora", train_connectors=False),
    "head and connectors in full": BASE,
    "no LoRA": replace(BASE, lora_target_modules=()),
}


@dataclass(frozen=True)
class Trained:
    """A base model, an adapter of it, and what was heard of the model as it was when the adapter was saved."""

    base: ModelSource
    folder: Path
    said: tuple[Generation, Heard]


def loaded(base: ModelSource, folder: Path, tmp_path: Path) -> SpeechModel:
    del tmp_path
    return load_speech_model(replace(base, adapter=str(folder)))


def merged_in_memory(base: ModelSource, folder: Path, tmp_path: Path) -> SpeechModel:
    speaker = loaded(base, folder, tmp_path)
    merge(speaker.model)
    assert not has_lora(speaker.model)
    return speaker


def merged_into_a_folder(base: ModelSource, folder: Path, tmp_path: Path, layout: Layout) -> Path:
    merged = tmp_path / "merged"
    export(
        ExportRequest(
            base.name_or_path,
            merged,
            adapter=folder,
            layout=layout,
            processor_name_or_path=base.processor_name_or_path,
        )
    )
    return merged


def merged_original(base: ModelSource, folder: Path, tmp_path: Path) -> SpeechModel:
    merged = merged_into_a_folder(base, folder, tmp_path, Layout.ORIGINAL)
    return load_speech_model(replace(base, name_or_path=str(merged)))


def merged_native(base: ModelSource, folder: Path, tmp_path: Path) -> SpeechModel:
    """With the text tokenizer that lies in the folder."""
    merged = merged_into_a_folder(base, folder, tmp_path, Layout.NATIVE)
    return load_speech_model(replace(base, name_or_path=str(merged), processor_name_or_path=None))


def merged_native_by_transformers(base: ModelSource, folder: Path, tmp_path: Path) -> SpeechModel:
    """Read by transformers alone, as another program would."""
    ours = merged_native(base, folder, tmp_path)
    model = VibeVoiceForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    return replace(ours, model=model)


Way = Callable[[ModelSource, Path, Path], SpeechModel]
WAYS: dict[str, Way] = {
    "loaded": loaded,
    "merged in memory": merged_in_memory,
    "merged, original layout": merged_original,
    "merged, native layout": merged_native,
    "merged, native layout, transformers alone": merged_native_by_transformers,
}


@pytest.fixture(scope="module", params=list(PLANS))
def trained(request: pytest.FixtureRequest, golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    plan = PLANS[request.param]
    base = ModelSource(
        str(golden_dir / "tied" / "checkpoint"),
        dtype=torch.float32,
        device="cpu",
        processor_name_or_path=str(golden_dir / "tokenizer"),
    )
    speaker = load_speech_model(base)
    torch.manual_seed(1)
    attach(speaker.model, plan)
    with torch.no_grad():
        for parameter in trainable_parameters(speaker.model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    fingerprint = model_fingerprint(open_base_model(base.name_or_path))
    save_adapter(speaker.model, plan, folder, AdapterInfo(base.name_or_path, fingerprint, expects_voice_prompt=False))
    return Trained(base, folder, speak(speaker))


def speak(speaker: SpeechModel) -> tuple[Generation, Heard]:
    return run(GenerationRequest(speaker, SCRIPTS, num_diffusion_steps=3, seed=2), FRAMES)


def assert_same(one: tuple[Generation, Heard], other: tuple[Generation, Heard], tolerance: float) -> None:
    for name in ("inputs", "hidden", "negative_inputs", "conditions", "latents", "scores"):
        pairs = zip(getattr(one[1], name), getattr(other[1], name), strict=True)
        for found, expected in pairs:
            finite = torch.isfinite(expected)
            largest = max(1.0, expected[finite].abs().max().item())
            torch.testing.assert_close(found[finite], expected[finite], atol=tolerance * largest, rtol=0)
    assert chosen(one[1]) == chosen(other[1])
    for found, expected in zip(one[0].speeches, other[0].speeches, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(found.waveform_N), torch.from_numpy(expected.waveform_N), atol=tolerance, rtol=0
        )


def chosen(heard: Heard) -> list[list[int]]:
    """What the model itself would have chosen at each step."""
    choices: Tensor = torch.stack(heard.scores).argmax(-1)
    return choices.tolist()


@pytest.mark.parametrize("way", list(WAYS))
def test_every_way_in_leads_to_the_same_model(trained: Trained, way: str, tmp_path: Path) -> None:
    speaker = WAYS[way](trained.base, trained.folder, tmp_path)
    assert_same(speak(speaker), trained.said, TOLERANCE)


def test_the_adapter_matters(trained: Trained) -> None:
    """Else the comparison above would compare the base model with itself."""
    with pytest.raises(AssertionError):
        assert_same(speak(load_speech_model(trained.base)), trained.said, 100 * TOLERANCE)


def test_at_scale_0_it_is_the_base_bit_for_bit(trained: Trained) -> None:
    without = load_speech_model(replace(trained.base, adapter=str(trained.folder), adapter_scale=0.0))
    assert_same(speak(without), speak(load_speech_model(trained.base)), tolerance=0)
