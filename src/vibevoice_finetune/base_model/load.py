"""Open a base model and load what a job needs of it: for training, for generation, or the two speech encoders alone.

Why: a base model comes in two layouts, from a folder or the Hub, and a job needs only a part of it: training none of
the speech tokenizers, encoding nothing but them. Each part is read straight from the files into its final type and
device, one copy in memory, and only after the whole model was found to fit its configuration.

In: what the user typed. Out: a `BaseModel`, and from it transformers' modules or the encoders; fingerprints by which
latents and adapters know the weights that they belong to.
"""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    VibeVoiceAcousticTokenizerEncoderModel,
    VibeVoiceConfig,
    VibeVoiceForConditionalGeneration,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.config import (
    Layout,
    check_sampling_rate,
    check_schedule,
    generation_settings,
    layout_of,
    part_configs,
    read_config,
)
from vibevoice_finetune.base_model.hub import SETTINGS, WEIGHTS, Repository, download, locate
from vibevoice_finetune.base_model.original_config import Json
from vibevoice_finetune.base_model.parts import VibeVoiceWithoutTokenizers, check_can_be_built, facts, tensor_shapes
from vibevoice_finetune.base_model.weights import (
    WeightIndex,
    check_weights,
    has_weights,
    index_weights,
    lazy_tensors,
    read_bytes,
)
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.errors import BaseModelError
from vibevoice_finetune.files.headers import StoredTensor
from vibevoice_finetune.files.json_objects import read_json_object
from vibevoice_finetune.latents.arithmetic import Arithmetic, computing_in
from vibevoice_finetune.latents.encode import encode_in_chunks
from vibevoice_finetune.latents.shards import Part

ENCODED_AT_ONCE_FRAMES = 150  # 20 s of a row; at full size 0.7 GB of memory in float32, however long the row is
ENCODED_AT_ONCE_BYTES = 750_000_000  # on a processor, for all rows together: again 20 s at full size
_BYTES_PER_SAMPLE_AND_FILTER = 48  # 36 MB per second of audio with the 32 filters of full size (measured)
_FINGERPRINT_LENGTH = 32  # hex digits, 128 bits
_Model = TypeVar("_Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class BaseModel:
    """A base model whose configuration was read; no weights yet.

    Attributes:
        source: what the user typed.
        folder: where its small files lie.
        layout: of names and configuration.
        config: transformers' configuration, whatever the layout.
        raw_config: `config.json` as it stands.
        repository: where it was downloaded from; None for a local folder.
    """

    source: str
    folder: Path
    layout: Layout
    config: VibeVoiceConfig
    raw_config: Json
    repository: Repository | None


def open_base_model(name_or_path: str, cache_dir: Path | None = None) -> BaseModel:
    """Read a base model's configuration from a folder or a repository of the Hub.

    Raises:
        BaseModelError: there is no such model, it is not VibeVoice, or one that cannot be expressed.
    """
    folder, repository = locate(name_or_path, SETTINGS, cache_dir)
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise BaseModelError(
                f"{name_or_path}: holds an adapter, not a model; give the model that it was trained on"
            )
        inside = sorted(str(found.parent) for found in folder.glob("*/config.json"))[:3]
        hint = f" (did you mean {' or '.join(inside)}?)" if inside else ""
        raise BaseModelError(f"{name_or_path}: no config.json{hint}; expected the folder of a VibeVoice model")
    raw = read_json_object(path, BaseModelError, "download it again")
    config = read_config(raw, str(path))
    check_can_be_built(config, str(path))
    check_sampling_rate(folder)
    check_schedule(folder)
    layout = layout_of(raw, str(path))
    if has_weights(folder):
        index_weights(folder, layout)  # says now what is damaged or quantised, whatever is done with the model
    return BaseModel(name_or_path, folder, layout, config, raw, repository)


def with_special_tokens(base: BaseModel, special: SpecialTokens) -> BaseModel:
    """The model with the token ids of its text tokenizer in the configuration, where `generate()` looks them up.

    An original configuration has no ids (the native one's defaults are Qwen2.5's), and a native one may be wrong.

    Raises:
        BaseModelError: an id lies beyond the model's vocabulary: the tokenizer belongs to another model.
    """
    vocab_size = facts(base.config).vocab_size
    highest = max(special.ids)
    if highest >= vocab_size:
        raise BaseModelError(
            f"{base.source}: the text tokenizer's special tokens have ids up to {highest}, the model's "
            f"vocabulary ends at {vocab_size - 1}; give the tokenizer of this model with --processor_name_or_path"
        )
    config = copy.deepcopy(base.config)
    config.audio_bos_token_id = special.speech_start
    config.audio_eos_token_id = special.speech_end
    config.audio_token_id = special.frame
    config.eos_token_id = special.end_of_text
    config.pad_token_id = special.end_of_text
    return replace(base, config=config)


def weight_index(base: BaseModel) -> WeightIndex:
    """The places of all tensors, by native name, after checking that they are exactly those of the configuration.

    Downloads the weights if the model is a repository whose weights are not in the cache.

    Raises:
        BaseModelError: no weights, a damaged file, or tensors missing, left over or of another shape.
    """
    folder = base.folder
    if base.repository is not None:
        where = base.repository
        folder = download(where.repo_id, WEIGHTS, where.revision, where.cache_dir)
    return check_weights(index_weights(folder, base.layout), tensor_shapes(base.config))


def load_for_training(
    base: BaseModel,
    dtype: torch.dtype,
    device: torch.device | str,
    quantization_config: BitsAndBytesConfig | None = None,
) -> VibeVoiceForConditionalGeneration:
    """Load everything but the speech tokenizers, whose tensors are never read.

    Args:
        base: what to load.
        dtype: of every tensor but the frequency buffers, which are float32.
        device: where the weights go.
        quantization_config: how to quantise linear layers while loading.

    Raises:
        BaseModelError: as `weight_index`.
    """
    tensors = weight_index(base).tensors
    needed = {name: at for name, at in tensors.items() if not name.startswith(tensor_names.SPEECH_TOKENIZERS)}
    return _load(VibeVoiceWithoutTokenizers, base.config, needed, dtype, device, quantization_config)


def load_for_generation(
    base: BaseModel, dtype: torch.dtype, device: torch.device | str
) -> VibeVoiceForConditionalGeneration:
    """Load the whole model, ready for `generate()`.

    Its token ids are those of the configuration; see `with_special_tokens`.

    Raises:
        BaseModelError: as `weight_index`.
    """
    tensors = weight_index(base).tensors
    model = _load(VibeVoiceForConditionalGeneration, base.config, tensors, dtype, device)
    model.generation_config = GenerationConfig(**generation_settings(base.config))  # type: ignore[no-untyped-call]  # no types there
    return model


def load_part(
    base: BaseModel,
    kind: type[_Model],
    config: PreTrainedConfig,
    prefix: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> _Model:
    """Load the part of a model whose native names begin with `prefix`; no other tensor is read.

    Raises:
        BaseModelError: as `weight_index`.
    """
    return _load(kind, config, _without_prefix(weight_index(base), prefix), dtype, device)


class SpeechEncoders:
    """The acoustic and the semantic encoder, and nothing else of a model; one of them at a time is in memory.

    Each is loaded when it is asked for, in place of the other: at full size they have 1.4 GB of float32 each, and
    together they would be the largest thing that a small machine ever has to hold.

    Attributes:
        hop_length: samples per frame.
        acoustic_dim: C.
        semantic_dim: S.
        arithmetic: how products of float32 are rounded.
        on_load: called once, before the first encoder is loaded: audio is about to be encoded.
    """

    on_load: Callable[[], None] | None = None

    def __init__(self, base: BaseModel, dtype: torch.dtype, device: torch.device | str, arithmetic: Arithmetic) -> None:
        self._checkpoint = base
        self._dtype = dtype
        self._device = torch.device(device)
        self._loaded: tuple[Part, VibeVoiceAcousticTokenizerEncoderModel] | None = None
        self.arithmetic = arithmetic
        audio, semantic, _, _ = part_configs(base.config)
        self.hop_length: int = audio.encoder_config.hop_length
        self.acoustic_dim: int = audio.encoder_config.hidden_size
        self.semantic_dim: int = semantic.hidden_size

    @torch.no_grad()
    def encode(self, part: Part, waveform_BN: Tensor) -> Tensor:
        """Encode waveforms; nothing is sampled.

        Args:
            part: which encoder; the first call for it loads it.
            waveform_BN: (B, N) float32, N a multiple of `hop_length`. The encoders look back only, so zeros at a row's
                end leave the frames before them as they are.

        Returns:
            Acoustic means (B, F, C) or semantic features (B, F, S), float32, on the encoders' device.

        Raises:
            BaseModelError: as `weight_index`.
        """
        assert waveform_BN.shape[-1] % self.hop_length == 0, "zero-pad the waveform to whole frames first"
        network = self.network(part)
        if self._device.type == "cuda":
            waveform_BN = waveform_BN.pin_memory()  # from here the copy runs while this thread goes on
        input_BN = waveform_BN.to(device=self._device, dtype=self._dtype, non_blocking=True)
        chunk_samples = ENCODED_AT_ONCE_FRAMES * self.hop_length
        groups = 1
        if self._device.type != "cuda":  # a processor is as fast with a clip as with many
            row_bytes = (
                min(input_BN.shape[1], chunk_samples) * network.config.num_filters * _BYTES_PER_SAMPLE_AND_FILTER
            )
            groups = math.ceil(len(input_BN) / max(1, ENCODED_AT_ONCE_BYTES // row_bytes))
        with computing_in(self.arithmetic):
            latents = [encode_in_chunks(network, rows_BN, chunk_samples) for rows_BN in input_BN.tensor_split(groups)]
            return torch.cat(latents).float()

    def network(self, part: Part) -> VibeVoiceAcousticTokenizerEncoderModel:
        """The module of one encoder; the other one is let go."""
        if self._loaded is None or self._loaded[0] is not part:
            self.free()
            if self.on_load is not None:
                self.on_load()
                self.on_load = None
            self._loaded = part, self._load(part).requires_grad_(False)
        return self._loaded[1]

    def free(self) -> None:
        """Give the memory back."""
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, part: Part) -> VibeVoiceAcousticTokenizerEncoderModel:
        audio, semantic, _, _ = part_configs(self._checkpoint.config)
        config, prefix = {
            Part.ACOUSTIC: (audio.encoder_config, tensor_names.ACOUSTIC_ENCODER),
            Part.SEMANTIC: (semantic, tensor_names.SEMANTIC_ENCODER),
        }[part]
        kind = VibeVoiceAcousticTokenizerEncoderModel
        return load_part(self._checkpoint, kind, config, prefix, self._dtype, self._device)


def load_encoders(
    base: BaseModel,
    dtype: torch.dtype,
    device: torch.device | str,
    arithmetic: Arithmetic = Arithmetic.FLOAT32,
) -> SpeechEncoders:
    """The two encoders, to be loaded when they are asked for; no other tensor is read.

    Raises:
        BaseModelError: as `weight_index`.
    """
    weight_index(base)
    return SpeechEncoders(base, dtype, device, arithmetic)


def encoder_fingerprint(base: BaseModel) -> str:
    """Hex digest of both encoders: their tensors as stored, and the configuration that they compute with.

    Equal for both layouts of the same weights; latents of another encoder are told by it.
    """
    audio, semantic, _, _ = part_configs(base.config)
    settings = [
        [part.downsampling_ratios, part.rms_norm_eps, part.hidden_act, part.kernel_size] for part in (audio, semantic)
    ]
    return _fingerprint(weight_index(base).block(*tensor_names.ENCODERS), json.dumps(settings))


def model_fingerprint(base: BaseModel) -> str:
    """Hex digest of what a fine-tune starts from: language model, head, connectors, output matrix, scale and bias.

    Equal for both layouts of the same weights, and for a tied model whose files hold the output matrix twice.
    """
    tensors = weight_index(base).tensors
    tuned = {name: at for name, at in tensors.items() if not name.startswith(tensor_names.SPEECH_TOKENIZERS)}
    _, _, text, _ = part_configs(base.config)
    return _fingerprint(tuned, json.dumps([text.rope_parameters, text.tie_word_embeddings], sort_keys=True))


def _load(
    model_class: type[_Model],
    config: PreTrainedConfig,
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    device: torch.device | str,
    quantization_config: BitsAndBytesConfig | None = None,
) -> _Model:
    """Fill an empty model of transformers from the files.

    transformers is handed the slices of the files under their native names instead of the files: it reads each when
    its turn comes, casts, moves or quantises it, and never touches those that were not handed over. While it quantises
    it reads one after the other (without, on four threads), so the memory is that of the result and a single tensor.
    """
    with lazy_tensors(tensors, mapped=quantization_config is None) as slices, _without_progress_bars():
        loaded: Any = model_class.from_pretrained(
            None,
            config=config,
            state_dict=slices,
            dtype=dtype,
            device_map={"": torch.device(device)},
            quantization_config=quantization_config,
            output_loading_info=True,
        )
    model, report = loaded
    faults = {kind: found for kind, found in report.items() if found}
    assert not faults, f"the weights were checked, yet transformers reports {faults}"
    return cast(_Model, model)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep "Loading weights" off the terminal: it ends without a line break, and the next message is glued to it."""
    shown_before = is_progress_bar_enabled()
    disable_progress_bar()  # type: ignore[no-untyped-call]  # no types there
    try:
        yield
    finally:
        if shown_before:
            enable_progress_bar()  # type: ignore[no-untyped-call]


def _without_prefix(index: WeightIndex, prefix: str) -> dict[str, StoredTensor]:
    return {name.removeprefix(prefix): stored for name, stored in index.block(prefix).items()}


def _fingerprint(tensors: Mapping[str, StoredTensor], settings: str) -> str:
    """Hash tensor by tensor on a few threads (hashing releases the lock), then the digests in the names' order.

    SHA-256, because processors have instructions for it: 0.7 GB/s on a core where BLAKE2b makes 0.26.
    """
    total = hashlib.sha256(settings.encode())
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(lambda item: _tensor_digest(*item), sorted(tensors.items()))
        for digest in digests:
            total.update(digest)
    return total.hexdigest()[:_FINGERPRINT_LENGTH]


def _tensor_digest(name: str, stored: StoredTensor) -> bytes:
    digest = hashlib.sha256(f"{name} {stored.dtype} {stored.shape}".encode())
    for chunk in read_bytes(stored):
        digest.update(chunk)
    return digest.digest()
