"""The best checkpoint of a run, by what is heard: `OUT/best`, with the reason beside it.

All checkpoints and the base model say held-out rows, are judged as by `evaluate`, and the earliest one is taken that is
not worse than the best by more than the noise (`evaluation/choose.py`). The report of it lies in `OUT/evaluation`.
"""

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vibevoice_finetune.adapters.info import add_training_to_card
from vibevoice_finetune.adapters.read import ADAPTER_FILES, NESTED
from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.base_model.hub import locate
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.errors import ArgumentError, shown
from vibevoice_finetune.evaluation.evaluate import Evaluation, EvaluationRequest, evaluate
from vibevoice_finetune.evaluation.report import write_report
from vibevoice_finetune.evaluation.speak import Voice
from vibevoice_finetune.files.atomic import check_writable, write_json, writing_folder
from vibevoice_finetune.generation.generate import ModelSource

BEST, REPORT, REASON_FILE = "best", "evaluation", "choice.json"
MOST_ROWS = 40
SEEDS = 1
"""Takes of each row. More rows say more than more takes of the same rows."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What is chosen from, after a training.

    Attributes:
        rows: held out; each with its recording.
        adapters: of the run, the earliest first.
        audio_hours: that were trained on.
    """

    rows: tuple[Row, ...]
    adapters: tuple[Voice, ...]
    audio_hours: float


def candidates(checkpoints: Sequence[Path], result: Path, last_step: int) -> tuple[Voice, ...]:
    """The adapters of a run: those of its checkpoints, and the result unless the last checkpoint holds the same.

    Args:
        checkpoints: folders `checkpoint-N`, the earliest first.
        result: the folder `lora`.
        last_step: whose weights the result holds.
    """
    found = [Voice(folder.name, str(folder / result.name)) for folder in checkpoints]
    if f"checkpoint-{last_step}" not in {voice.name for voice in found}:
        found.append(Voice("result", str(result)))
    return tuple(found)


def choose_best(arguments: Arguments, finished: Finished, say: Callable[[str], None]) -> Path:
    """Judge the adapters of a run, and write the one to use to `OUT/best`.

    Args:
        arguments: the parsed command line, with `--select_best_by`.
        finished: what is chosen from.
        say: told what was found, in lines.

    Returns:
        That folder.

    Raises:
        UserError: a row or a judge cannot be used, or a folder cannot be written.
    """
    loop, model = arguments.loop, arguments.model
    assert loop.select_best_by is not None
    output_dir = Path(str(loop.output_dir))
    gc.collect()  # the trainer's model, which a second one would not fit beside
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(f"choosing: {len(finished.adapters)} checkpoints and the base model say {len(finished.rows)} rows")
    found = evaluate(
        EvaluationRequest(
            model=ModelSource(
                model.model_name_or_path,
                dtype=torch.bfloat16 if loop.bf16 else torch.float32,
                device=str(loop.device),
                processor_name_or_path=model.processor_name_or_path,
                cache_dir=Path(model.cache_dir) if model.cache_dir else None,
            ),
            voices=finished.adapters,
            rows=finished.rows,
            output=output_dir / REPORT,
            seeds=SEEDS,
            recogniser=loop.recognizer,
            language=loop.language,
            choose_by=loop.select_best_by,
        )
    )
    report = write_report(found, output_dir / REPORT)
    write_best(found, output_dir / BEST)
    add_training_to_card(output_dir / BEST, finished.audio_hours)
    assert found.choice is not None
    say(
        f"the best is {found.choice.voice}: {found.choice.reason}; it is in {output_dir / BEST}, the report is {report}"
    )
    return output_dir / BEST


def write_best(found: Evaluation, folder: Path) -> None:
    """Copy the recommended adapter of an evaluation, and put the reason beside it.

    Args:
        found: with a recommendation.
        folder: is replaced if it holds an adapter.

    Raises:
        WriteError: the folder cannot be written.
    """
    choice = found.choice
    assert choice is not None
    adapter = next(voice.adapter for voice in found.request.voices if voice.name == choice.voice)
    assert adapter is not None
    source, _ = locate(adapter, ADAPTER_FILES, found.request.model.cache_dir)
    nested = source / NESTED
    with writing_folder(folder) as staging:
        shutil.copytree(nested if nested.is_dir() else source, staging, dirs_exist_ok=True)
        write_json(staging / REASON_FILE, reason(found))


def reason(found: Evaluation) -> dict[str, object]:
    """Why this one: the rule, and the figures of all that it was chosen from."""
    assert found.choice is not None
    return {
        "chosen": found.choice.voice,
        "best_figure": found.choice.best,
        "by": found.request.choose_by,
        "reason": found.choice.reason,
        "rule": "the earliest checkpoint that is not worse than the best by more than the noise",
        "rows": len(found.request.rows),
        "takes_per_row": found.request.seeds,
        "recogniser": found.recogniser_name,
        "speaker_encoder": found.encoder_name,
        "figures": {
            voice: {key: asdict(one.own) for key, one in figures.items() if key in ("similarity", "word_error")}
            for voice, figures in found.compared.items()
        },
    }


def check_place(folder: Path) -> None:
    """Refuse a place for the best adapter before the evaluation costs time.

    Raises:
        ArgumentError: something else than an adapter that was chosen before is there.
        WriteError: it cannot be written to.
    """
    if folder.exists() and not (folder / REASON_FILE).is_file():
        raise ArgumentError(
            f"--write_best {shown(folder)}: exists, and is not a folder that this flag wrote; name another."
        )
    check_writable(folder, "--write_best")
