"""Small speech encoders with real arithmetic, and what the processes of the tests run."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vibevoice_finetune.audio.source import AudioSource, load_audio, normalize_rms, pad_to_frames
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.latents.encode import SpeechEncoder, encode_in_chunks
from vibevoice_finetune.latents.fill import FillReport, fill
from vibevoice_finetune.latents.processes import started_together
from vibevoice_finetune.latents.store import Latents, LatentStore, Part, Segment

HOP, ACOUSTIC_DIM, SEMANTIC_DIM = 40, 3, 5


class Network(nn.Module):
    """Two causal convolutions that look one and a half hops into the past, (B, 1, N) -> (B, N / HOP, dim)."""

    def __init__(self, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Conv1d(1, 8, 21)
        self.second = nn.Conv1d(8, dim, 2 * HOP, stride=HOP)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.05, generator=generator)

    def forward(self, waveform_B1N: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(nn.functional.pad(waveform_B1N, (20, 0))))
        output: Tensor = self.second(nn.functional.pad(hidden, (HOP, 0)))
        return output.transpose(1, 2)


@dataclass
class SmallEncoder:
    """A `SpeechEncoder`; counts what it is given, and notes in which order it is asked for its parts."""

    hop_length: int = HOP
    acoustic_dim: int = ACOUSTIC_DIM
    semantic_dim: int = SEMANTIC_DIM
    fingerprint: str = "small"
    arithmetic: str = "float32"
    delay_sec: float = 0.0
    parts: list[Part] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    semantic_rows: int = 0

    def __post_init__(self) -> None:
        self.acoustic = Network(self.acoustic_dim, seed=1)
        self.semantic = Network(self.semantic_dim, seed=2)

    @property
    def num_rows(self) -> int:
        return sum(rows for rows, _ in self.shapes)

    def encode(self, part: Part, waveform_BN: Tensor) -> Tensor:
        if self.parts[-1:] != [part]:
            self.parts.append(part)
        if part is Part.ACOUSTIC:
            self.shapes.append((waveform_BN.shape[0], waveform_BN.shape[1]))
        else:
            self.semantic_rows += len(waveform_BN)
        time.sleep(self.delay_sec)
        network = self.acoustic if part is Part.ACOUSTIC else self.semantic
        latents: Tensor = network(waveform_BN[:, None])
        return latents


@dataclass
class VibeVoiceEncoder:
    """Transformers' own encoders, tiny, with blocks that do more than pass on their input."""

    chunk_samples: int = 1_000_000
    hop_length: int = 24
    acoustic_dim: int = 6
    semantic_dim: int = 10
    fingerprint: str = "vibevoice"
    arithmetic: str = "float32"

    def __post_init__(self) -> None:
        from transformers import VibeVoiceAcousticTokenizerEncoderConfig, VibeVoiceAcousticTokenizerEncoderModel

        def network(dim: int) -> nn.Module:
            config = VibeVoiceAcousticTokenizerEncoderConfig(
                hidden_size=dim,
                num_filters=4,
                downsampling_ratios=[2, 3, 4],
                depths=[1, 2, 1, 2],
                layer_scale_init_value=0.5,
                initializer_range=0.2,
            )
            model = VibeVoiceAcousticTokenizerEncoderModel(config).eval()
            with torch.no_grad():
                model.head.conv.weight.mul_(0.03)  # values about 1, so that 1e-6 is a few roundings
            return model

        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.acoustic, self.semantic = network(self.acoustic_dim), network(self.semantic_dim)

    def encode(self, part: Part, waveform_BN: Tensor) -> Tensor:
        network = self.acoustic if part is Part.ACOUSTIC else self.semantic
        return encode_in_chunks(network, waveform_BN, self.chunk_samples)


AnyEncoder = SmallEncoder | VibeVoiceEncoder


def noise(num_samples: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def array_source(samples: NDArray[np.float32], where: str = "row") -> AudioSource:
    return AudioSource(path=None, data=None, array=samples, sampling_rate_hz=24_000, where=where)


def targets(count: int, first: int = 0) -> list[Segment]:
    """Segments of 3 to 12 frames, each ending within a frame."""
    return [
        Segment(
            array_source(noise(HOP * (3 + n % 10) - 7, seed=n), f"row {n}"), normalize=True, cut=None, semantic=True
        )
        for n in range(first, first + count)
    ]


def open_store(folder: Path, encoder: AnyEncoder) -> LatentStore:
    return LatentStore(folder, encoder.fingerprint, encoder.acoustic_dim, encoder.semantic_dim)


def encode_directly(encoder: SpeechEncoder, segment: Segment) -> Latents:
    """One segment on its own, by the steps that the contract names."""
    samples = load_audio(segment.source)
    if segment.cut is not None:
        start, stop = segment.cut.drawn(segment.source.digest()).span(len(samples), encoder.hop_length)
        samples = samples[start:stop]
    if segment.normalize:
        samples = normalize_rms(samples)
    waveform = torch.from_numpy(pad_to_frames(samples, encoder.hop_length))[None]
    with torch.inference_mode():
        acoustic, semantic = (encoder.encode(part, waveform)[0].numpy() for part in Part)
    return Latents(acoustic, semantic if segment.semantic else None)


def check_store(store: LatentStore, segments: list[Segment], encoder: SpeechEncoder, atol: float = 1e-6) -> None:
    """Every segment is there and equals what it gives on its own."""
    for segment in segments:
        stored, direct = store.read(store.key(segment)), encode_directly(encoder, segment)
        np.testing.assert_allclose(stored.acoustic_FC, direct.acoustic_FC, rtol=0, atol=atol)
        if segment.semantic:
            assert stored.semantic_FS is not None
            np.testing.assert_allclose(stored.semantic_FS, direct.semantic_FS, rtol=0, atol=atol)


def refuse(error: DataError, _reason: str) -> None:
    raise error


def ignore(_error: DataError, _reason: str) -> None:
    pass


def fill_slowly(folder: Path, count: int) -> None:
    """For a process of its own: publishes every clip at once, 10 ms a clip."""
    encoder = SmallEncoder(delay_sec=0.01)
    fill(open_store(folder, encoder), targets(count), encoder, refuse, batch_sec=1e-9, max_age_sec=0.0)


def fill_together(
    folder: Path, index: int, count: int, segments: Callable[[], list[Segment]], skip: bool, answer: Path
) -> None:
    """For a process of its own: fills with others over gloo and writes what it has seen to `answer`."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=index, world_size=count)
    processes = started_together(index, count)
    encoder = SmallEncoder()
    store = open_store(folder, encoder)
    asked = segments()
    try:
        report = fill(store, asked, encoder, ignore if skip else refuse, processes=processes)
        answer.write_text(f"{_described(report)} own {encoder.num_rows} store {len(store)}")
        check_store(store, [s for n, s in enumerate(asked) if n not in report.failed], SmallEncoder())
    except DataError as error:
        answer.write_text(str(error))
    distributed.destroy_process_group()


def _described(report: FillReport) -> str:
    reasons = {number: error.reason for number, error in report.failed.items()}
    return f"encoded {report.encoded} reused {report.reused} failed {reasons}"


def fill_with_small_disk(folder: Path, count: int, max_file_bytes: int, answer: Path) -> None:
    """For a process of its own: no file may grow beyond the limit, which the writer meets as an OSError."""
    import resource

    from vibevoice_finetune.errors import UserError

    encoder = SmallEncoder()
    store = open_store(folder, encoder)
    segments = targets(count)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    try:
        fill(store, segments, encoder, refuse)
        message = "no error"
    except UserError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    descriptor = os.open(answer, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, message.encode())
    os.close(descriptor)


def mixed_segments() -> list[Segment]:
    """Sixteen clips, the fifth again, and two that cannot be encoded."""
    good = targets(16)
    short = Segment(array_source(noise(HOP - 1, seed=99), "row short"), normalize=True, cut=None, semantic=True)
    silent = Segment(
        array_source(np.zeros(400, dtype=np.float32), "row silent"), normalize=True, cut=None, semantic=False
    )
    return [*good[:8], short, *good[8:], silent, *targets(1, first=5)]


def wait_or_be_killed(folder: Path, index: int, answer: Path) -> None:
    """For a process of its own: the second of two kills itself within its part; the first writes its error."""
    from torch import distributed

    from vibevoice_finetune.errors import UserError

    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=index, world_size=2)
    processes = started_together(index, 2)
    encoder = SmallEncoder()
    if index == 1:
        encoder.encode = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    try:
        fill(open_store(folder, encoder), targets(20), encoder, refuse, processes=processes)
    except UserError as error:
        answer.write_text(str(error))


def fail_early(folder: Path, index: int, answer: Path) -> None:
    """For a process of its own: the second of two fails at once; the first would work for minutes."""
    from torch import distributed

    from vibevoice_finetune.errors import UserError

    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=index, world_size=2)
    processes = started_together(index, 2)
    encoder = SmallEncoder(delay_sec=0.05 if index == 0 else 0.0)
    if index == 1:

        def no_memory(*_: object) -> Tensor:
            raise UserError("the second process has no memory")

        encoder.encode = no_memory  # type: ignore[method-assign]
    try:
        fill(open_store(folder, encoder), targets(2_000), encoder, refuse, processes=processes, batch_sec=1e-9)
    except UserError as error:
        answer.write_text(str(error))
    distributed.destroy_process_group()
