"""Waveforms to latents: batches of equal lengths through one speech encoder, in bounded memory.

In come clips, as `latents/read_ahead.py` makes them, and an encoder; out go the frames of each clip. The result for a
clip does not depend on its neighbours: rows are padded with zeros on the right, after their own last frame, and the
encoders are causal, so no frame of a clip ever sees them.

Shapes: B rows, N samples, F frames, D dim of the encoder (C acoustic, S semantic).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.latents.read_ahead import Clip
from vibevoice_finetune.latents.shards import Floats, Part

logger = logging.getLogger(__name__)


class SpeechEncoder(Protocol):
    """What the store needs of the two speech encoders."""

    @property
    def hop_length(self) -> int:
        """Samples per frame."""

    @property
    def arithmetic(self) -> str:
        """What it computes in, for the record."""

    def encode(self, part: Part, waveform_BN: Tensor) -> Tensor:
        """The acoustic mean (B, F, C) or the semantic features (B, F, S); nothing is sampled.

        The parts are asked for one after the other, so that only one encoder need be in memory. N is a multiple of the
        hop and may be any length: pass each network through `encode_in_chunks` to bound the memory. The waveform comes
        as float32 on the CPU; results may lie anywhere, in any floating dtype.
        """


@dataclass
class BatchLimit:
    """The most samples of a batch, padding included; halved when memory runs out."""

    samples: int


def make_batches(clips: Sequence[Clip], limit: BatchLimit) -> Iterator[list[Clip]]:
    """Batches of about equal lengths, longest first. A clip above the limit is a batch of its own."""
    batch: list[Clip] = []
    for clip in sorted(clips, key=lambda clip: len(clip.waveform_N), reverse=True):
        if batch and (len(batch) + 1) * len(batch[0].waveform_N) > limit.samples:
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


@dataclass(frozen=True, eq=False)
class StartedBatch:
    """A batch that the device has been given; its latents are copied to the host behind it.

    Attributes:
        clips: of the batch.
        hop_length: samples per frame.
        latents_BFD: on the host; not to be looked at before `copied`.
        copied: happens when they are there; None if they are.
    """

    clips: Sequence[Clip]
    hop_length: int
    latents_BFD: Tensor
    copied: torch.cuda.Event | None

    def results(self) -> list[Floats]:
        """Wait for the device; each result (F, D) has its own clip's frames only."""
        if self.copied is not None:
            self.copied.synchronize()
        latents_BFD: Floats = self.latents_BFD.numpy()
        frames = [len(clip.waveform_N) // self.hop_length for clip in self.clips]
        return [latents_FD[:own] for latents_FD, own in zip(latents_BFD, frames, strict=True)]


def start_within_memory(
    encoder: SpeechEncoder, part: Part, clips: Sequence[Clip], limit: BatchLimit
) -> list[StartedBatch]:
    """As `start_batch`; where the device's memory does not suffice, in halves, and in smaller batches from then on."""
    try:
        return [start_batch(encoder, part, clips)]
    except torch.OutOfMemoryError as error:
        longest_sec = len(clips[0].waveform_N) / SAMPLING_RATE_HZ
        if len(clips) == 1:
            raise UserError(
                f"the device's memory does not suffice to encode a single clip of {longest_sec:.1f} s; free memory on "
                "it, or run on the CPU with --use_cpu."
            ) from error
        limit.samples = len(clips) // 2 * len(clips[0].waveform_N)
        logger.warning("out of memory; encoding %.0f s of audio at a time now", limit.samples / SAMPLING_RATE_HZ)
    middle = len(clips) // 2
    halves = clips[:middle], clips[middle:]
    return [batch for half in halves for batch in start_within_memory(encoder, part, half, limit)]


def start_batch(encoder: SpeechEncoder, part: Part, clips: Sequence[Clip]) -> StartedBatch:
    """Give the device a batch; on the CPU it is encoded when this returns."""
    waveform_BN = np.zeros((len(clips), max(len(clip.waveform_N) for clip in clips)), dtype=np.float32)
    for row_N, clip in zip(waveform_BN, clips, strict=True):
        row_N[: len(clip.waveform_N)] = clip.waveform_N
    with torch.inference_mode():
        latents_BFD = encoder.encode(part, torch.from_numpy(waveform_BN)).float()
        copied = None
        if latents_BFD.is_cuda:  # a copy without waiting goes into pinned memory, which PyTorch takes by itself
            device = latents_BFD.device
            latents_BFD = latents_BFD.to("cpu", non_blocking=True)
            copied = torch.cuda.current_stream(device).record_event()
        else:
            latents_BFD = latents_BFD.cpu()
    frames = waveform_BN.shape[1] // encoder.hop_length
    assert latents_BFD.shape[:2] == (len(clips), frames), latents_BFD.shape
    return StartedBatch(clips, encoder.hop_length, latents_BFD, copied)


def encode_in_chunks(network: nn.Module, waveform_BN: Tensor, chunk_samples: int) -> Tensor:
    """Run one of transformers' speech encoders over a waveform of any length in bounded memory.

    Each convolution keeps the end of its last input (transformers' padding cache), so the result is that of one pass.
    Memory grows with B · chunk_samples; at full size by 36 MB per second of audio in float32 (measured).

    Args:
        network: a `VibeVoiceAcousticTokenizerEncoderModel`.
        waveform_BN: N is a multiple of the hop.
        chunk_samples: a multiple of the hop.

    Returns:
        Latents (B, F, C or S).
    """
    if waveform_BN.shape[1] <= chunk_samples:
        return network(waveform_BN[:, None]).latents  # type: ignore[no-any-return]  # a module's call is untyped
    cache = None
    latents = []
    for chunk_B1N in torch.split(waveform_BN[:, None], chunk_samples, dim=-1):
        output = network(chunk_B1N, padding_cache=cache, use_cache=True)
        cache = output.padding_cache
        latents.append(output.latents)
    return torch.cat(latents, dim=1)
