"""`train` and `encode`: from a command line to a result.

A run locks its output folder, prepares the data (`training/load_data.py`), loads the model without its tokenizers,
attaches what is trained, reports, trains, and writes the portable result. The output folder is

    lora/ or model/  the result          checkpoint-N/    run checkpoints, to go on from
    arguments.yaml   the flags           environment.json versions and device
    metrics.jsonl    every log           runs/            TensorBoard, if it is installed
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from vibevoice_finetune.adapters.attach import AdapterPlan
from vibevoice_finetune.adapters.info import INFO_FILE, AdapterInfo, add_training_to_card
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.adapters.start import build, taking_over
from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.base_model.load import model_fingerprint
from vibevoice_finetune.console import make_console
from vibevoice_finetune.errors import ArgumentError, StoppedRun, UserError
from vibevoice_finetune.export.upload import Upload, push_result, take_upload
from vibevoice_finetune.export.whole_model import RECORD_FILE, Origin, save_model
from vibevoice_finetune.files.atomic import (
    check_writable,
    explaining_write_errors,
    remove_leftovers,
)
from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.memory.estimate import Estimate, estimate_for, gigabytes
from vibevoice_finetune.objective.objective import Objective
from vibevoice_finetune.objective.sharding import is_split
from vibevoice_finetune.samples.best import Finished, choose_best
from vibevoice_finetune.samples.plan import prepare_samples
from vibevoice_finetune.training import run_checkpoints
from vibevoice_finetune.training.load_data import LoadedData, latents_dir, left_to_choose, load_data, samples_of
from vibevoice_finetune.training.metrics import step_of_result
from vibevoice_finetune.training.report import print_report, versions, write_settings
from vibevoice_finetune.training.run_state import read_identity, read_starts, with_optimizer
from vibevoice_finetune.training.same_run import Identity, check_same_run, identity
from vibevoice_finetune.training.trainer import FinetuneTrainer

ADAPTER, MODEL = "lora", "model"
"""Names of the result's folder: an adapter, or a whole model where the language model was trained."""
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""In the message of the plain `RuntimeError` that torch raises where the machine's memory is used up."""
RECOMPUTATION = {"gradient_checkpointing", "activation_checkpointing"}


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        result: the folder `OUT/lora`, or `OUT/model` where the whole language model was trained; None if the run only
            evaluated.
        best: the folder `OUT/best`; None without `--select_best_by`.
        steps: optimizer steps, with those of the run that it went on from.
        evaluation: figures of the newest evaluation; empty if there was none.
    """

    result: Path | None = None
    best: Path | None = None
    steps: int = 0
    evaluation: Mapping[str, float] = field(default_factory=dict)


def train(arguments: Arguments) -> Trained:
    """Train, evaluate, or both, as the flags say.

    Args:
        arguments: of `make_arguments`, or of a parsed command line.

    Raises:
        UserError: the model, the data or the flags cannot be used, or the output cannot be written.
        StoppedRun: a signal asked for the end; everything is saved.
    """
    loop = arguments.loop
    if not (loop.do_train or loop.evaluates):
        print("nothing to do: add --do_train to train, --do_eval to evaluate, or both.")  # noqa: T201
        return Trained()
    loop.check_processes(loop.world_size)
    upload = take_upload(loop)
    console = make_console(quiet=loop.process_index != 0)
    if not console.is_terminal:
        disable_progress_bar()  # type: ignore[no-untyped-call]  # bars of loading, noise in a log file
    output_dir = Path(str(loop.output_dir))
    with claimed(arguments, output_dir):
        trained, finished = train_in(output_dir, arguments, upload, console)
        if finished is None:
            return trained
        # The trainer's model is gone from memory now.
        return replace(trained, best=choose_best(arguments, finished, console.print))


def train_in(
    output_dir: Path, arguments: Arguments, upload: Upload | None, console: Console
) -> tuple[Trained, Finished | None]:
    """Train, evaluate, or both, in an output folder that no other run writes to.

    Returns:
        What came of it, and what the best is to be chosen from.
    """
    loop = arguments.loop
    resume = resume_point(arguments, output_dir, console)
    arguments, start = taking_over(arguments)
    prepared = prepare_samples(arguments)
    data = load_data(arguments, console.print)
    if data.filled is not None:
        console.print(data.filled.summary())
    base_fingerprint = model_fingerprint(data.checkpoint)
    if start is not None:
        start.check_base(data.checkpoint, base_fingerprint)
    this_run = identity(arguments, base_fingerprint, data.train_set, data.eval_set, start.digest() if start else None)
    if resume is not None:
        tell_changes(resume, this_run, loop.allow_changed_run, console)
    expected = expected_memory(arguments, data, console) if loop.do_train else None
    if expected is not None:
        console.print(f"memory {expected.line()}")
    with advising_on_memory(expected, lambda: "not even the model fits."):
        begun = read_starts(resume) if resume else None
        objective, plan = build(arguments, data.checkpoint, data.special, start, begun)
    if loop.process_index == 0:
        write_settings(arguments, output_dir)
    export = exporter(arguments, data, objective, plan, base_fingerprint)
    if loop.debug_save:
        export(output_dir / "debug_initial")
    trainer = FinetuneTrainer(
        objective,
        loop,
        data.train_set,
        data.eval_set,
        export,
        this_run,
        arguments.data.max_tokens_per_batch,
        result_name(plan),
        samples_of(arguments, prepared, data, base_fingerprint, objective.model),
    )
    max_steps, steps_per_epoch = trainer.count_steps()
    print_report(console, arguments, data, objective.model, max_steps, steps_per_epoch)
    if expected is not None:
        run_training(trainer, output_dir, resume, expected)
        if loop.process_index == 0:
            hand_over(output_dir / result_name(plan), data, upload, console)
    if loop.do_eval and not trainer.has_evaluated_last_step():
        trainer.evaluate()
    if loop.do_eval:
        console.print_json(json.dumps(trainer.last_evaluation()))
    trained = Trained(
        result=output_dir / trainer.result if loop.do_train else None,
        steps=trainer.state.global_step,
        evaluation=trainer.last_evaluation(),
    )
    return trained, left_to_choose(arguments, data, output_dir / trainer.result, step_of_result(loop, trainer.state))


def encode(arguments: Arguments) -> None:
    """Fill the latent store that a later `train` with the same flags reads."""
    if not arguments.loop.output_dir and not arguments.data.latents_dir:
        raise ArgumentError("say where the latents go: --latents_dir FOLDER (give the same to train).")
    check_latents_writable(arguments)
    console = make_console(quiet=arguments.loop.process_index != 0)
    data = load_data(arguments, console.print)
    assert data.filled is not None
    console.print(data.filled.summary())
    if data.bad_rows:
        console.print(f"left out: {data.bad_rows}", style="yellow")
    console.print(f"the store is {latents_dir(arguments)}")


@contextmanager
def claimed(arguments: Arguments, output_dir: Path) -> Iterator[None]:
    """Keep other runs out of the output folder, after a look at whether it can be written to at all.

    Only the first of several processes does so. What killed runs left half written is deleted.

    Raises:
        InUseError: another run is there.
        WriteError: the output folder or the latent store cannot be written to.
    """
    if arguments.loop.process_index != 0:
        yield
        return
    check_writable(output_dir, "--output_dir")
    check_latents_writable(arguments)
    is_new = not output_dir.exists()
    try:
        with locked(output_dir, "train", inside=True):
            remove_leftovers(output_dir)
            yield
    finally:
        if is_new:
            with suppress(OSError):  # it stays, unless nothing was written into it
                output_dir.rmdir()


def check_latents_writable(arguments: Arguments) -> None:
    """Refuse a place for new latents that cannot be written to; a store that is filled may be read-only."""
    store = latents_dir(arguments)
    if not store.is_dir() or not any(store.iterdir()):
        check_writable(store, "--latents_dir" if arguments.data.latents_dir else "--output_dir")


def expected_memory(arguments: Arguments, data: LoadedData, console: Console) -> Estimate:
    """The estimate for the run that is about to load its model.

    Where the run does not fit and would if the language model recomputed its layers, it will, unless
    `--gradient_checkpointing` says otherwise: that costs time and changes no number.
    """
    loop = arguments.loop
    rows = data.train_set or data.eval_set
    assert rows is not None, "neither training nor evaluation"
    encodes = data.filled is not None and data.filled.encoded > 0
    expected = estimate_for(arguments, data.checkpoint.config, rows.rows, encodes=encodes, mix=rows.mix)
    if not RECOMPUTATION.isdisjoint(arguments.given) or loop.activation_checkpointing or expected.fits_here():
        return expected
    loop.activation_checkpointing = True
    recomputed = estimate_for(arguments, data.checkpoint.config, rows.rows, encodes=encodes, mix=rows.mix)
    if recomputed.fits_here():
        console.print(
            f"layers are recomputed to save memory ({gigabytes(recomputed.peak)} instead of "
            f"{gigabytes(expected.peak)}); --gradient_checkpointing False turns it off"
        )
        return recomputed
    loop.activation_checkpointing = False
    return expected


def resume_point(arguments: Arguments, output_dir: Path, console: Console) -> Path | None:
    """The run checkpoint to go on from, or None to start; refuses a folder that holds another run's result.

    Raises:
        ArgumentError: the folder is taken, or there is no such run checkpoint.
        RunCheckpointError: the run checkpoint named is damaged, or was saved without what is needed to go on.
    """
    wanted = str(arguments.loop.resume_from_checkpoint or "false")
    if wanted.lower() == "false":
        if arguments.loop.do_train:
            refuse_taken(output_dir)
        return None
    if wanted.lower() != "true":
        if not Path(wanted).is_dir():
            found = ", ".join(folder.name for folder in run_checkpoints.complete_checkpoints(output_dir)) or "none"
            raise ArgumentError(
                f"--resume_from_checkpoint {wanted}: there is no such folder; run checkpoints in {output_dir}: {found}."
            )
        run_checkpoints.check(Path(wanted))
        return with_optimizer(Path(wanted))
    newest, damaged = run_checkpoints.newest_whole(output_dir)
    for line in damaged:
        console.print(f"warning: {line}", style="yellow")
    if newest is None:
        console.print(f"no whole run checkpoint in {output_dir}: starting from the beginning", style="yellow")
        return None
    console.print(f"going on from {newest}")
    return with_optimizer(newest)


def refuse_taken(output_dir: Path) -> None:
    """Raise ArgumentError if a folder holds a run, finished or not."""
    if (output_dir / ADAPTER / INFO_FILE).exists() or (output_dir / MODEL / RECORD_FILE).exists():
        raise ArgumentError(
            f"--output_dir {output_dir}: holds a finished run; choose another folder, or go on from its last run "
            "checkpoint with --resume_from_checkpoint True."
        )
    found = run_checkpoints.complete_checkpoints(output_dir)
    if found:
        raise ArgumentError(
            f"--output_dir {output_dir}: holds {found[-1].name} of a run that did not finish; go on with "
            "--resume_from_checkpoint True, or choose another folder."
        )


def tell_changes(resume: Path, this_run: Identity, allow: bool, console: Console) -> None:
    """Refuse to go on with another run than the run checkpoint's, or say what is different if that is allowed."""
    changed = check_same_run(read_identity(resume), this_run, str(resume), allow=allow)
    if changed:
        console.print(f"going on with a changed run: {'; '.join(changed)}", style="yellow")


def exporter(
    arguments: Arguments, data: LoadedData, objective: Objective, plan: AdapterPlan, base_fingerprint: str
) -> Callable[[Path], None]:
    """A function that writes the portable result of the model as it stands into a folder.

    All processes call it; the first one writes.
    """
    has_prompts = any(row.has_prompts for row in data.train_set.rows) if data.train_set else False
    model, loop = arguments.model, arguments.loop
    info = AdapterInfo(
        base_model=model.model_name_or_path,
        base_fingerprint=base_fingerprint,
        expects_voice_prompt=has_prompts and arguments.data.voice_prompt_drop_rate < 1,
        versions=versions(),
        settings=arguments.given,
        changed_from_recipe=arguments.changed_from_recipe,
    )
    origin = Origin(
        data.checkpoint,
        torch.bfloat16 if loop.bf16 else torch.float32,
        model.processor_name_or_path,
        Path(model.cache_dir) if model.cache_dir else None,
    )
    writes = loop.process_index == 0

    def export(folder: Path) -> None:
        if not (writes or is_split(objective)):
            return
        if plan.train_language_model:
            save_model(objective.model, plan, folder, origin, info, writes=writes)
        else:
            save_adapter(objective.model, plan, folder, info, writes=writes)

    return export


def result_name(plan: AdapterPlan) -> str:
    """Name of the folder with the result, in the output folder and in run checkpoints."""
    return MODEL if plan.train_language_model else ADAPTER


def run_training(trainer: FinetuneTrainer, output_dir: Path, resume: Path | None, expected: Estimate) -> None:
    """Train to the end and write the result.

    Args:
        trainer: ready to train.
        output_dir: of the run.
        resume: the run checkpoint to go on from.
        expected: the memory that was predicted; knows which flags would lower it.

    Raises:
        StoppedRun: a signal asked to stop; the run was saved.
        UserError: the memory does not suffice, and the steps done so far are saved; or numbers went bad.
        WriteError: something cannot be written.
    """
    with (
        trainer.stop.listening(),
        advising_on_memory(expected, trainer.leave_resumable),
        explaining_write_errors(output_dir, run_checkpoints.HOW_TO_GO_ON, reads=True),
    ):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.must_stop():
        raise StoppedRun(
            f"stopped by {trainer.stop.signal_name or 'a signal'} after step {trainer.state.global_step}; "
            f"saved in {output_dir}; go on with --resume_from_checkpoint True."
        )
    trainer.bad_steps.check_weights(trainer.state.global_step, trainer.parameters)
    result = output_dir / trainer.result
    with trainer.averaged(), explaining_write_errors(result, run_checkpoints.HOW_TO_GO_ON):
        trainer.export(result)
    if trainer.args.should_save:
        trainer.rotate_checkpoints()


@contextmanager
def advising_on_memory(expected: Estimate | None, leave: Callable[[], str]) -> Iterator[None]:
    """Turn "out of memory", of a GPU or of the machine, into a message that says which flags would lower the need.

    Args:
        expected: what was predicted; None if nothing is trained.
        leave: brings the run into order and says where it was left.

    Raises:
        UserError: the memory does not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and CPU_ALLOCATOR not in str(error):
            raise
        # Audio was encoded before, and has given its memory back.
        advice = "".join(f"\n  {line}" for line in replace(expected, encoding=0.0).advice()) if expected else ""
        what = f" What would lower it:{advice}" if advice else ""
        device = "GPU" if isinstance(error, torch.OutOfMemoryError) else "machine"
        raise UserError(f"the {device}'s memory does not suffice: {leave()}{what}") from error


def hand_over(result: Path, data: LoadedData, upload: Upload | None, console: Console) -> None:
    """Complete the result's card, say where it is, and upload it if that was asked for."""
    if result.name == ADAPTER:
        add_training_to_card(result, data.summaries["train"].audio_hours)
    console.print(f"the result is {result}")
    if upload is not None:
        console.print(f"uploaded: {push_result(result, upload)}")
