from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.latents.speech_encoders import HOP, SmallEncoder, VibeVoiceEncoder, noise
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.latents.encode import (
    BatchLimit,
    SpeechEncoder,
    encode_in_chunks,
    make_batches,
    start_batch,
    start_within_memory,
)
from vibevoice_finetune.latents.read_ahead import Clip
from vibevoice_finetune.latents.shards import Floats, Part


def clips(*frames: int, hop: int = HOP) -> list[Clip]:
    return [Clip(number, noise(count * hop, seed=number)) for number, count in enumerate(frames)]


def encode_alone(encoder: SpeechEncoder, part: Part, clip: Clip) -> Floats:
    (result,) = start_batch(encoder, part, [clip]).results()
    return result


def lengths(batches: Sequence[Sequence[Clip]], hop: int = HOP) -> list[list[int]]:
    return [[len(clip.waveform_N) // hop for clip in batch] for batch in batches]


# Batches


def test_batches_hold_similar_lengths_up_to_the_limit_padding_included() -> None:
    # 9 frames fill a batch: 7; 4 and 4 (8); 3, 3, 2 (9); 2 and 1 (4); the 12 is alone above the limit.
    batches = list(make_batches(clips(3, 4, 12, 2, 7, 4, 1, 3, 2), BatchLimit(9 * HOP)))
    assert lengths(batches) == [[12], [7], [4, 4], [3, 3, 2], [2, 1]]


def test_no_clips_make_no_batch() -> None:
    assert list(make_batches([], BatchLimit(1_000))) == []


# A clip's result is its own


@pytest.mark.parametrize("part", Part)
def test_a_clip_in_a_batch_equals_the_clip_alone(part: Part) -> None:
    encoder = VibeVoiceEncoder()
    batch = clips(31, 30, 12, 1, hop=encoder.hop_length)
    together = start_batch(encoder, part, batch).results()
    for clip, result in zip(batch, together, strict=True):
        assert len(result) == len(clip.waveform_N) // encoder.hop_length
        np.testing.assert_allclose(result, encode_alone(encoder, part, clip), rtol=0, atol=1e-6)
        assert np.abs(result).max() > 0.05  # the tolerance means something


@pytest.mark.parametrize("chunk_frames", [1, 2, 7, 40])
def test_chunks_give_what_the_whole_gives(chunk_frames: int) -> None:
    encoder = VibeVoiceEncoder()
    waveform_BN = torch.from_numpy(np.stack([noise(53 * 24, seed=1), noise(53 * 24, seed=2)]))
    with torch.inference_mode():
        for network in (encoder.acoustic, encoder.semantic):
            whole = network(waveform_BN[:, None]).latents
            chunked = encode_in_chunks(network, waveform_BN, chunk_frames * 24)
            assert whole.shape == (2, 53, whole.shape[2])
            torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)


def test_without_the_past_chunks_would_differ() -> None:
    encoder = VibeVoiceEncoder()
    waveform_BN = torch.from_numpy(noise(20 * 24, seed=1))[None]
    with torch.inference_mode():
        whole = encode_in_chunks(encoder.acoustic, waveform_BN, 20 * 24)
        late = encode_in_chunks(encoder.acoustic, waveform_BN[:, 10 * 24 :], 20 * 24)
    assert (whole[:, 10:] - late).abs().max() > 1e-2


# Memory


class LittleMemory(SmallEncoder):
    """Runs out of memory above ten frames, padding included, as a device does."""

    def encode(self, part: Part, waveform_BN: Tensor) -> Tensor:
        if waveform_BN.numel() > 10 * HOP:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().encode(part, waveform_BN)


def test_out_of_memory_makes_smaller_batches_with_the_same_result() -> None:
    batch = clips(4, 4, 3, 3, 2, 1)
    limit = BatchLimit(1_000_000)
    started = start_within_memory(LittleMemory(), Part.ACOUSTIC, batch, limit)
    results = [latents for one in started for latents in one.results()]
    for clip, result in zip(batch, results, strict=True):
        alone = encode_alone(SmallEncoder(), Part.ACOUSTIC, clip)
        np.testing.assert_allclose(result, alone, rtol=0, atol=1e-6)
    assert limit.samples <= 12 * HOP  # 6 rows of 4 did not fit, 3 of 4 did not, so later batches are below that
    assert len(results) == 6


def test_a_single_clip_beyond_the_memory_is_said_clearly() -> None:
    with pytest.raises(UserError, match=r"memory does not suffice.*single clip of 0\.0 s.*--use_cpu"):
        start_within_memory(LittleMemory(), Part.ACOUSTIC, clips(11), BatchLimit(1_000_000))
