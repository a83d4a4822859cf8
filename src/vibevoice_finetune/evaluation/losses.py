"""The losses of a model on the held-out rows, with fixed noise: the same numbers that `train` evaluates, row by row.

The diffusion loss is given by bands of timesteps, because they say different things: at small t a frame is nearly clean
and only fine detail is missing, at large t it is nearly noise and the model has to know what comes next. Draws depend
on the row alone, so two models meet the same noise and their difference is the models' own.

In come rows and a model that can speak (`generation/`), out go sums and counts for each row.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from vibevoice_finetune.base_model.load import (
    encoder_fingerprint,
    load_encoders,
    open_base_model,
    with_special_tokens,
)
from vibevoice_finetune.base_model.parts import facts
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.data.collate import Batch, collate
from vibevoice_finetune.data.dataset import Draw, DrawSettings, SpeechDataset
from vibevoice_finetune.data.rows import BadRows, Row
from vibevoice_finetune.data.voice_prompts import make_requests, plan_rows
from vibevoice_finetune.generation.generate import ModelSource
from vibevoice_finetune.generation.prompts import SpeechModel
from vibevoice_finetune.latents.arithmetic import fastest
from vibevoice_finetune.latents.fill import fill
from vibevoice_finetune.latents.store import LatentStore
from vibevoice_finetune.objective.losses import squared_error_by_band
from vibevoice_finetune.objective.objective import Objective

SEED = 0
NOISE_DRAWS = 8
"""Per frame: twice as many as a usual training step has, for a steadier figure."""

BANDS = 4
CUTS_PER_CLIP = 1

Fraction = tuple[float, float]
"""A numerator and a denominator, to be added up over rows before they are divided."""


@dataclass(frozen=True)
class RowLosses:
    """What one row adds to each loss.

    Attributes:
        diffusion: squared error and its count for each band of timesteps, the cleanest first.
        text: cross-entropy of the text's tokens.
        control: cross-entropy among the four control tokens.
        go_on: decisions "another frame" that are right, of all.
        stop: decisions "end of speech" and "end of text" that are right, of all.
    """

    diffusion: tuple[Fraction, ...]
    text: Fraction
    control: Fraction
    go_on: Fraction
    stop: Fraction


@dataclass(frozen=True, eq=False)
class FixedRows:
    """Encoded rows with fixed draws.

    Attributes:
        dataset: one example per usable row.
        numbers: for each of them, its number among the rows that were given.
    """

    dataset: SpeechDataset
    numbers: tuple[int, ...]


def prepare_rows(source: ModelSource, rows: Sequence[Row], folder: Path) -> FixedRows:
    """Encode the rows into a latent store and plan them; rows that cannot be trained on are left out.

    Args:
        source: the base model.
        rows: held out.
        folder: of the latent store.

    Raises:
        BaseModelError: the model or its text tokenizer cannot be used.
        UserError: the store cannot be written.
    """
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    base = open_base_model(source.name_or_path, source.cache_dir)
    tokenizer = load_tokenizer(base, source.processor_name_or_path, source.cache_dir)
    special = special_tokens(tokenizer)
    base = with_special_tokens(base, special)
    model = facts(base.config)
    skipped = BadRows("skip")
    requests = make_requests(
        rows, seed=SEED, cuts_per_clip=CUTS_PER_CLIP, normalize_targets=True, bad_rows=skipped, special=special
    )
    store = LatentStore(folder, encoder_fingerprint(base), model.acoustic_dim, model.semantic_dim)
    encoders = load_encoders(base, torch.float32, device, fastest(device))
    owners = [request for request in requests for _ in request.segments]
    segments = [segment for request in requests for segment in request.segments]
    report = fill(store, segments, encoders, lambda _error, _reason: None)
    encoders.free()
    failed = {id(owners[number]) for number in report.failed}
    usable = [request for request in requests if id(request) not in failed]

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    planned = plan_rows(usable, store, encode, special, model.max_positions, skipped)
    settings = DrawSettings(SEED, NOISE_DRAWS, model.num_train_timesteps, evaluation=True)
    place = {row.where: number for number, row in enumerate(rows)}
    dataset = SpeechDataset(planned, store, encode, special, settings)
    return FixedRows(dataset, tuple(place[row.where] for row in planned))


@torch.no_grad()
def row_losses(speaker: SpeechModel, fixed: FixedRows) -> dict[int, RowLosses]:
    """Losses of each row under a model, by the row's number."""
    objective = Objective(speaker.model, speaker.special).eval()
    weight = next(speaker.model.parameters())
    autocast: AbstractContextManager[object] = nullcontext()
    if weight.dtype == torch.bfloat16:
        autocast = torch.autocast(weight.device.type, torch.bfloat16)
    found = {}
    for place, number in enumerate(fixed.numbers):
        batch = _to_device(collate([fixed.dataset[Draw(0, place)]]), weight.device)
        with autocast:
            found[number] = _losses(objective, batch)
    return found


def _losses(objective: Objective, batch: Batch) -> RowLosses:
    clean_FC, hidden_TD = objective.states(batch)
    sums = objective.loss_sums(clean_FC, hidden_TD, batch)
    predicted_FKC, target_FKC = objective.velocities(
        hidden_TD.index_select(0, batch["condition_index"]), clean_FC, batch
    )
    bands = squared_error_by_band(
        predicted_FKC, target_FKC, batch["timestep"], len(objective.get_buffer("alpha")), BANDS
    )
    counts = batch["counts"]
    return RowLosses(
        diffusion=tuple((float(total), float(count)) for total, count in bands.tolist()),
        text=(sums["text"].item(), counts.text),
        control=(sums["control"].item(), counts.control),
        go_on=(sums["go_right"].item(), sums["go_total"].item()),
        stop=(sums["stop_right"].item(), sums["stop_total"].item()),
    )


def _to_device(batch: Batch, device: torch.device) -> Batch:
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return cast(Batch, moved)
