"""Everything before the model is loaded: rows are read, audio becomes latents, examples are planned.

In comes a parsed command line, out goes `LoadedData`: the checkpoint's facts, the text tokenizer and the data sets. The
speech tokenizers are in memory only while audio is encoded, and only if some is missing in the store.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.base_model.load import (
    BaseModel,
    SpeechEncoders,
    encoder_fingerprint,
    load_encoders,
    open_base_model,
    with_special_tokens,
)
from vibevoice_finetune.base_model.parts import ModelFacts, facts
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.data.dataset import DrawSettings, SpeechDataset
from vibevoice_finetune.data.mix import Mix
from vibevoice_finetune.data.prompt import Encode, FixedPieces, SpecialTokens
from vibevoice_finetune.data.rows import BadRows, Row
from vibevoice_finetune.data.script import num_speakers
from vibevoice_finetune.data.splits import DataSet, read_splits
from vibevoice_finetune.data.voice_prompts import PlannedRow, RowRequest, make_requests, plan_rows
from vibevoice_finetune.errors import DataError, shown
from vibevoice_finetune.latents.arithmetic import fastest
from vibevoice_finetune.latents.fill import FillReport, fill
from vibevoice_finetune.latents.processes import started_together
from vibevoice_finetune.latents.store import LatentStore, Segment
from vibevoice_finetune.memory.count import measure
from vibevoice_finetune.memory.estimate import RUNTIME_BYTES, gigabytes
from vibevoice_finetune.memory.tokenizers import encoding_bytes
from vibevoice_finetune.samples.best import MOST_ROWS, Finished, candidates
from vibevoice_finetune.samples.plan import Prepared, make_samples
from vibevoice_finetune.samples.samples import Samples
from vibevoice_finetune.samples.script import pick_rows
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints
from vibevoice_finetune.validation.validate import cheap_warnings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSummary:
    """What the start-up report says of a data set."""

    rows: int
    audio_hours: float
    speakers: int
    prompt_sources: Counter[str]
    tokens: int


@dataclass(frozen=True, eq=False)
class LoadedData:
    """What training needs besides the model's weights."""

    checkpoint: BaseModel
    facts: ModelFacts
    special: SpecialTokens
    train_set: SpeechDataset | None
    eval_set: SpeechDataset | None
    encode: Encode
    bad_rows: str
    filled: FillReport | None
    sample_rows: tuple[Row, ...] = ()
    heard_rows: tuple[Row, ...] = ()
    summaries: dict[str, DataSummary] = field(default_factory=dict)
    set_names: tuple[str, ...] = ()


def load_data(arguments: Arguments, say: Callable[[str], None] | None = None) -> LoadedData:
    """Read, check, encode and plan all rows.

    Args:
        arguments: the parsed command line.
        say: told in a line, before audio is encoded, what memory that takes.

    Raises:
        BaseModelError: the model or its text tokenizer cannot be used.
        DataError: rows cannot be used, or too many of them.
        UserError: the latent store cannot be written.
    """
    model, data = arguments.model, arguments.data
    cache_dir = Path(model.cache_dir) if model.cache_dir else None
    checkpoint = open_base_model(model.model_name_or_path, cache_dir)
    tokenizer = load_tokenizer(checkpoint, model.processor_name_or_path, cache_dir)
    special = special_tokens(tokenizer)
    checkpoint = with_special_tokens(checkpoint, special)
    model_facts = facts(checkpoint.config)
    bad_rows = BadRows(data.on_bad_row)
    splits = read_splits(arguments, cache_dir, bad_rows)
    if arguments.loop.process_index == 0:
        for line in cheap_warnings([row for each in splits.get("train", ()) for row in each.rows]):
            logger.warning("%s", line)
    total = sum(len(each.rows) for sets in splits.values() for each in sets) + bad_rows.counts.total()
    # Each set by itself: the same name in two of them may be two speakers.
    requests = {
        name: [_requests(arguments, each.rows, special, bad_rows) for each in sets] for name, sets in splits.items()
    }
    fingerprint = encoder_fingerprint(checkpoint)
    store = LatentStore(latents_dir(arguments), fingerprint, model_facts.acoustic_dim, model_facts.semantic_dim)
    encoders = load_encoders(checkpoint, torch.float32, arguments.loop.device, fastest(arguments.loop.device))
    if say is not None:
        device = arguments.loop.device.type
        peak = encoding_bytes(measure(checkpoint.config), device) + RUNTIME_BYTES.get(device, RUNTIME_BYTES["cuda"])
        encoders.on_load = partial(
            say, f"encoding audio: about {gigabytes(peak)} of memory, before the model is loaded"
        )
    requests, report = _fill(store, requests, encoders, bad_rows, arguments)
    encoders.free()
    max_tokens = min(data.max_length or model_facts.max_positions, model_facts.max_positions)
    encode: Encode = FixedPieces(partial(_encode, tokenizer.backend_tokenizer))
    planned = {
        name: [
            plan_rows(one, store, encode, special, max_tokens, bad_rows, model_positions=model_facts.max_positions)
            for one in found
        ]
        for name, found in requests.items()
    }
    bad_rows.check(total)
    _check_not_empty(splits, planned, bad_rows)

    def dataset(name: str) -> SpeechDataset | None:
        if name not in planned:
            return None
        shares = data.shares if name == "train" else None
        mix = None if shares is None else Mix(tuple(map(len, planned[name])), shares)
        settings = _settings(arguments, model_facts, name == "eval")
        return SpeechDataset(list(chain.from_iterable(planned[name])), store, encode, special, settings, mix)

    return LoadedData(
        checkpoint=checkpoint,
        facts=model_facts,
        special=special,
        train_set=dataset("train"),
        eval_set=dataset("eval"),
        encode=encode,
        bad_rows=bad_rows.summary(),
        filled=report,
        sample_rows=_sample_rows(arguments, splits, planned),
        heard_rows=_heard_rows(arguments, splits, planned),
        summaries={name: _summary(list(chain.from_iterable(sets)), model_facts) for name, sets in planned.items()},
        set_names=tuple(each.name for each in splits.get("train", ())),
    )


def _check_not_empty(
    splits: Mapping[str, Sequence[DataSet]], planned: Mapping[str, Sequence[Sequence[PlannedRow]]], bad_rows: BadRows
) -> None:
    for name, sets in splits.items():
        for each, rows in zip(sets, planned[name], strict=True):
            if not rows:
                which = f" in {shown(each.name)}" if len(sets) > 1 else ""
                purpose = "training" if name == "train" else "evaluation"
                raise DataError(f"no usable row for {purpose}{which} ({bad_rows.summary()}).")


def _sample_rows(
    arguments: Arguments,
    splits: Mapping[str, Sequence[DataSet]],
    planned: Mapping[str, Sequence[Sequence[PlannedRow]]],
) -> tuple[Row, ...]:
    """Rows that the samples of the run say, if no script is given for them; of several sets, the first one's."""
    if not arguments.loop.sample_steps or arguments.loop.sample_script:
        return ()
    name = "eval" if "eval" in splits else "train"
    return pick_rows(splits[name][0].rows, [row.where for row in planned[name][0]])


def _heard_rows(
    arguments: Arguments,
    splits: Mapping[str, Sequence[DataSet]],
    planned: Mapping[str, Sequence[Sequence[PlannedRow]]],
) -> tuple[Row, ...]:
    """Rows by which the best checkpoint is chosen, if it is.

    Raises:
        DataError: there is none of one speaker, as similarity and words are measured.
    """
    if arguments.loop.select_best_by is None:
        return ()
    usable = {row.where for rows in planned["eval"] for row in rows if num_speakers(row.turns) == 1}
    if not usable:
        raise DataError(
            "--select_best_by: every evaluation row has several speakers; give rows of one speaker each with "
            "--validation_jsonl, or leave the flag out."
        )
    rows = chain.from_iterable(each.rows for each in splits["eval"])
    return tuple(islice((row for row in rows if row.where in usable), MOST_ROWS))


def samples_of(
    arguments: Arguments, prepared: Prepared | None, data: LoadedData, base_fingerprint: str, model: nn.Module
) -> Samples | None:
    """The samples of a run whose model is in memory, if there are to be any."""
    if prepared is None:
        return None
    speaker = (data.checkpoint, base_fingerprint, model, data.encode, data.special)
    return make_samples(arguments, prepared, data.sample_rows, *speaker)


def left_to_choose(arguments: Arguments, data: LoadedData, result: Path, last_step: int) -> Finished | None:
    """What `--select_best_by` chooses from, in the process that chooses; None where nothing is to be chosen."""
    loop = arguments.loop
    if loop.select_best_by is None or not loop.do_train or loop.process_index != 0:
        return None
    adapters = candidates(complete_checkpoints(result.parent), result, last_step)
    return Finished(data.heard_rows, adapters, data.summaries["train"].audio_hours)


def _encode(backend: Tokenizer, text: str) -> list[int]:
    """As `Qwen2Tokenizer.encode` without special tokens, in a third of its time: 300,000 rows are 20 s less."""
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def latents_dir(arguments: Arguments) -> Path:
    """Where the latent store is: `--latents_dir`, or inside the output folder."""
    return Path(arguments.data.latents_dir or Path(str(arguments.loop.output_dir)) / "latents")


def _requests(arguments: Arguments, rows: Sequence[Row], special: SpecialTokens, bad_rows: BadRows) -> list[RowRequest]:
    return make_requests(
        rows,
        seed=arguments.loop.draw_seed,
        cuts_per_clip=arguments.data.prompt_cuts_per_clip,
        normalize_targets=arguments.data.normalize_targets,
        bad_rows=bad_rows,
        special=special,
    )


def _fill(
    store: LatentStore,
    requests: dict[str, list[list[RowRequest]]],
    encoders: SpeechEncoders,
    bad_rows: BadRows,
    arguments: Arguments,
) -> tuple[dict[str, list[list[RowRequest]]], FillReport]:
    """Fill the store; rows whose audio cannot be encoded are left out (if `bad_rows` lets that pass)."""
    owned: list[tuple[RowRequest, Segment]] = [
        (request, segment)
        for sets in requests.values()
        for request in chain.from_iterable(sets)
        for segment in request.segments
    ]
    loop = arguments.loop
    report = fill(
        store,
        [segment for _, segment in owned],
        encoders,
        _raise_unless_skipping(bad_rows),
        processes=started_together(loop.process_index, loop.world_size) if loop.world_size > 1 else None,
    )
    failures = {id(owned[number][0]): failure for number, failure in report.failed.items()}
    for failure in failures.values():
        bad_rows.report(failure, failure.reason)
    usable = {
        name: [[request for request in found if id(request) not in failures] for found in sets]
        for name, sets in requests.items()
    }
    return usable, report


def _raise_unless_skipping(bad_rows: BadRows) -> Callable[[DataError, str], None]:
    """What ends the filling at the first bad source; skipped ones are counted afterwards, once per row."""

    def on_failure(error: DataError, reason: str) -> None:
        if bad_rows.policy == "error":
            bad_rows.report(error, reason)

    return on_failure


def _settings(arguments: Arguments, model_facts: ModelFacts, evaluation: bool) -> DrawSettings:
    return DrawSettings(
        seed=arguments.loop.draw_seed,
        ddpm_batch_mul=arguments.loop.ddpm_batch_mul,
        num_timesteps=model_facts.num_train_timesteps,
        voice_prompt_drop_rate=arguments.data.voice_prompt_drop_rate,
        unconditional_rate=arguments.loop.unconditional_rate,
        evaluation=evaluation,
    )


def _summary(planned: Sequence[PlannedRow], model_facts: ModelFacts) -> DataSummary:
    frames = sum(row.target_frames for row in planned)
    return DataSummary(
        rows=len(planned),
        audio_hours=frames * model_facts.hop_length / model_facts.sampling_rate_hz / 3600,
        speakers=len({row.speaker for row in planned if row.speaker is not None}),
        prompt_sources=Counter(row.source.value for row in planned),
        tokens=sum(row.num_tokens for row in planned),
    )
