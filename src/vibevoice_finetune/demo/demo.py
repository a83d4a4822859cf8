"""The demo: the small model that comes with the package learns a voice that it has never heard, on two CPU cores.

In comes an output folder; out go an adapter, three sentences spoken before and after, a picture of them, and, where the
judges are installed, what they say of both. Nothing is simulated: model, flags, training and evaluation are those of a
real run, only smaller. What is found is said as it is, better or worse.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import soundfile
import torch
from rich.console import Console

from vibevoice_finetune.arguments import make_arguments
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, load_audio
from vibevoice_finetune.base_model.hub import SMALL
from vibevoice_finetune.data.jsonl import BadRows, Columns, read_jsonl
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.demo.picture import Panel, draw
from vibevoice_finetune.errors import ArgumentError, UserError, require
from vibevoice_finetune.evaluation.evaluate import EvaluationRequest, evaluate, with_voice_prompts
from vibevoice_finetune.evaluation.report import write_report
from vibevoice_finetune.evaluation.speak import Voice, script_of
from vibevoice_finetune.evaluation.verdict import sentences
from vibevoice_finetune.files.atomic import writing_file
from vibevoice_finetune.generation.generate import GenerationRequest, ModelSource, Speech, generate
from vibevoice_finetune.training.run import train

VOICE = Path(__file__).parent / "voice"
PICTURE = "before-and-after.png"
NUM_SPOKEN = 3
NUM_JUDGED = 12
CLOSING = """
Done. In {folder}:
  before/, after/       three sentences by the model as it came, and by the fine-tuned one; real/: the voice itself
  {picture}  their spectrograms
  run/lora              the adapter, in the layout that other VibeVoice tools read

The model is tiny, its 87 words and its voices are synthetic: this run shows that every part works here, not how good
a released model gets. With one and your recordings (a line: {{"text": "Speaker 0: …", "audio": "clip.wav"}}):

  vibevoice-finetune train --model_name_or_path microsoft/VibeVoice-1.5B --train_jsonl train.jsonl --output_dir out \\
    --do_train --bf16 True --train_diffusion_head True --per_device_train_batch_size 4 --learning_rate 2.5e-5 \\
    --num_train_epochs 5 --voice_prompt_drop_rate 0.2

The model's text tokenizer is downloaded from the Hub with it. Train on a voice only with its owner's consent.
"""


def run(output_dir: Path, max_steps: int) -> None:
    """Run the demo.

    Args:
        output_dir: a folder that is empty or not there yet.
        max_steps: optimizer steps.

    Raises:
        ArgumentError: the output folder is not empty.
        UserError: matplotlib or diffusers is not installed.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ArgumentError(f"--output_dir {output_dir}: not an empty folder; remove it or name another one.")
    require("demo", "matplotlib.figure")
    require("demo", "diffusers")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    rows = with_voice_prompts(read_jsonl(VOICE / "eval.jsonl", Columns(), BadRows("error")))
    adapter = output_dir / "run" / "lora"
    with one_thread():
        console.print(f"Three sentences by the model as it comes: {output_dir / 'before'}")
        before = say(rows[:NUM_SPOKEN], None, output_dir / "before")
        console.print(f"Fine-tuning it to 40 clips of a voice that it has never heard: {output_dir / 'run'}")
        train(make_arguments(training_flags(output_dir / "run", max_steps)))
        console.print(f"The same sentences by the result: {output_dir / 'after'}")
        after = say(rows[:NUM_SPOKEN], adapter, output_dir / "after")
        keep_real(rows[:NUM_SPOKEN], output_dir / "real")
        draw(panels(rows[0], before[0], after[0]), output_dir / PICTURE)
        found = judged(rows[:NUM_JUDGED], adapter, output_dir / "report", console)
    Console(highlight=False, soft_wrap=True).print("\n".join(found))
    Console(highlight=False, soft_wrap=True).print(CLOSING.format(folder=output_dir, picture=PICTURE))


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context torch computes in one thread.

    The model's matrices are too small to share: on a busy machine, two threads took four times the processor time of
    one (docs/log.md).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def training_flags(run_dir: Path, max_steps: int) -> dict[str, Any]:
    """The flags that the demo trains with; `examples/small_model/finetune.py` compares them with others."""
    return {
        "model_name_or_path": SMALL,
        "train_jsonl": [str(VOICE / "train.jsonl")],
        "output_dir": str(run_dir),
        "do_train": True,
        "max_steps": max_steps,
        "per_device_train_batch_size": 8,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "train_diffusion_head": True,
        "ce_loss_weight": 0.05,
        "ddpm_batch_mul": 4,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "gradient_clipping": True,
        "voice_prompt_drop_rate": 0.1,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
    }


def say(rows: Sequence[Row], adapter: Path | None, folder: Path) -> list[Speech]:
    """Say the rows' texts with their voice prompts and write the audio, one file each."""
    folder.mkdir(parents=True)
    source = ModelSource(SMALL, adapter=None if adapter is None else str(adapter), dtype=torch.float32, device="cpu")
    scripts = tuple(script_of(row) for row in rows)
    speeches = generate(GenerationRequest(source, scripts, max_length_sec=10.0)).speeches
    for number, speech in enumerate(speeches, start=1):
        if len(speech.waveform_N):
            with writing_file(folder / f"{number}.wav") as staging:
                soundfile.write(staging, speech.waveform_N, SAMPLING_RATE_HZ, format="WAV")
    return list(speeches)


def keep_real(rows: Sequence[Row], folder: Path) -> None:
    """The recordings of the same sentences, to listen to beside the others."""
    folder.mkdir(parents=True)
    for number, row in enumerate(rows, start=1):
        with writing_file(folder / f"{number}.wav") as staging:
            soundfile.write(staging, load_audio(row.audio), SAMPLING_RATE_HZ, format="WAV")


def panels(row: Row, before: Speech, after: Speech) -> list[Panel]:
    """One sentence three times."""
    text = row.text.split(": ", 1)[1]
    return [
        Panel(f"before: {text}", before.waveform_N),
        Panel("after fine-tuning", after.waveform_N),
        Panel("the real voice", load_audio(row.audio)),
    ]


def judged(rows: Sequence[Row], adapter: Path, folder: Path, console: Console) -> list[str]:
    """What a recogniser and a speaker encoder say of held-out sentences; where they are not installed, that."""
    request = EvaluationRequest(
        model=ModelSource(SMALL, dtype=torch.float32, device="cpu"),
        voices=(Voice("fine-tuned", str(adapter)),),
        rows=tuple(rows),
        output=folder,
        seeds=1,
    )
    console.print(f"Judging base and result on {len(rows)} sentences that neither has heard")
    try:
        found = evaluate(request)
        page = write_report(found, folder)
    except UserError as error:
        return [f"Not judged: {error}"]
    real = f"A recogniser gets {found.reference.words.rate:.0%} of the words of the real clips wrong."
    return [real, *sentences(found), f"The report: {page}"]
