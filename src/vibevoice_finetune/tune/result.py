"""The end of `tune`: the best checkpoint in a folder of its own, the report beside it, and how to use them."""

import json
import shlex
import shutil
from pathlib import Path

from vibevoice_finetune.files.atomic import write_file, writing_folder

RESULT, REPORT = "lora", "report/index.html"


def checkpoint_folders(run: Path) -> list[Path]:
    """The saved states of a run that can speak, the earliest first."""
    found = [path for path in run.glob("checkpoint-*/lora") if path.is_dir()]
    return sorted((path.parent for path in found), key=lambda path: int(path.name.rpartition("-")[2]))


def recommended(report: Path, run: Path) -> tuple[Path, str]:
    """The folder of the adapter that an evaluation recommends, and why.

    Args:
        report: `report.json` of the evaluation; need not be there.
        run: the folder of the training.
    """
    last = run / RESULT
    if not report.is_file():
        return last, "the last weights; nothing was evaluated"
    choice = json.loads(report.read_text(encoding="utf-8")).get("recommended") or {}
    name = str(choice.get("voice", ""))
    folder = run / name / RESULT
    if name.startswith("checkpoint-") and folder.is_dir():
        return folder, f"{name}, {choice.get('reason', '')}"
    return last, "the last weights"


def verdict(report: Path) -> list[str]:
    """The sentences of an evaluation."""
    if not report.is_file():
        return []
    return [str(line) for line in json.loads(report.read_text(encoding="utf-8")).get("verdict", [])]


def publish(chosen: Path, page: Path | None, output: Path) -> None:
    """Copy the chosen adapter to `lora/` and the report's page to `report/index.html`.

    Args:
        chosen: the adapter's folder.
        page: of the evaluation; None without one.
        output: the folder of `tune`.

    Raises:
        WriteError: it cannot be written; what was there before stays.
    """
    with writing_folder(output / RESULT) as staging:
        shutil.copytree(chosen, staging, dirs_exist_ok=True)
    if page is not None:
        write_file(output / REPORT, page.read_bytes())


def how_to_use(output: Path, model: str, voice: Path | None) -> list[str]:
    """The three ways of using the result, as lines to copy.

    Args:
        output: the folder of `tune`.
        model: the base model.
        voice: a recording of the speaker, as a voice prompt.
    """
    result = output / RESULT
    prompt = f" --voice {_quoted(voice)}" if voice else ""
    here = f"generate --model_name_or_path {model} --adapter {_quoted(result)}{prompt}"
    community = f"--model_path {model} --checkpoint_path {_quoted(result)} --txt_path text.txt --speaker_names NAME"
    name = _quoted(Path(output.resolve().name))
    return [
        "Here:",
        f'  vibevoice-finetune {here} --text "The kettle was still warm." --output hello.wav',
        "In ComfyUI (restart it, then choose the folder in the VibeVoice LoRA node):",
        f"  cp -r {_quoted(result)} ComfyUI/models/vibevoice/loras/{name}",
        "With the community's script:",
        f"  python demo/inference_from_file.py {community}",
    ]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
