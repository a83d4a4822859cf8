"""What an adapter folder says of itself: `vibevoice_finetune.json` to programs, `README.md` to people.

Why: tensors alone do not say which model they belong to, whether a voice prompt is expected, and whether they are all
still there. The folder is made to be given away, so neither file holds a place on the machine of the run, or a secret.

In: facts of a run. Out: the two files, and back.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from vibevoice_finetune.adapters.attach import AdapterPlan
from vibevoice_finetune.adapters.files import read_json
from vibevoice_finetune.arguments import PATH_FLAGS
from vibevoice_finetune.errors import AdapterError, shown
from vibevoice_finetune.files.atomic import write_file, write_json
from vibevoice_finetune.flags.secrets import TOKEN, is_secret

INFO_FILE = "vibevoice_finetune.json"
CARD_FILE = "README.md"
FORMAT_VERSION = 1
TRAINING_HEADING = "## Training"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # a repository's folder in the Hub's cache
# Flags that name a model by a Hub id or a folder; of a folder, its name is kept.
_MODELS = ("model_name_or_path", "processor_name_or_path")
_PLACE_FLAG = re.compile(r".*(_dir|_path|_jsonl|_file|_checkpoint)|config")  # also those of transformers


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of an adapter beside its tensors.

    Attributes:
        base_model: as the user named it, a Hub id or a folder; of a folder, its name is written.
        base_fingerprint: `model_fingerprint` of the base; equal for both layouts of the same weights.
        expects_voice_prompt: whether the rows it was trained on had voice prompts.
        versions: package to version.
        settings: the flags that were given to the run, as JSON; those that name places are not written.
        changed_from_recipe: of the recipe's flags, those with another value in the run, with the recipe's.
    """

    base_model: str
    base_fingerprint: str
    expects_voice_prompt: bool
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    changed_from_recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileRecord:
    """One file of the folder as it was written."""

    sha256: str
    size_bytes: int


def public_info(info: AdapterInfo) -> AdapterInfo:
    """The facts without places on this machine and without secrets."""
    return replace(
        info,
        base_model=public_name(info.base_model),
        settings=public_settings(info.settings),
        changed_from_recipe=public_settings(info.changed_from_recipe),
    )


def public_name(model: str) -> str:
    """A model's Hub id, or the name of the folder that it lies in.

    >>> public_name("microsoft/VibeVoice-1.5B"), public_name("/data/me/models/VibeVoice-1.5B/")
    ('microsoft/VibeVoice-1.5B', 'VibeVoice-1.5B')
    """
    if not _is_place(model):
        return model
    path = Path(model).expanduser().absolute()
    path = path.resolve() if path.name in ("", "..") else path
    cached = next((match for part in path.parts if (match := _CACHED.fullmatch(part))), None)
    return f"{cached[1]}/{cached[2]}" if cached else path.name or "model"


def is_hub_id(name: str) -> bool:
    """Whether a model's name has the form of a Hub id."""
    return _HUB_ID.fullmatch(name) is not None


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run that may be given away: none that names a place on its machine, and no secret."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    kept: dict[str, Any] = {}
    for name, value in plain.items():
        if name in _MODELS and isinstance(value, str):
            kept[name] = public_name(value)
            continue
        several = value if isinstance(value, list) else [value]
        known_elsewhere = all(isinstance(one, str) and _HUB_ID.fullmatch(one) for one in several)
        if _is_private(name) or _holds_place_or_secret(value) or (name in PATH_FLAGS and not known_elsewhere):
            continue
        kept[name] = value
    return kept


def write_info(folder: Path, info: AdapterInfo, trained: Mapping[str, Any], contents: Mapping[str, FileRecord]) -> None:
    """Write `vibevoice_finetune.json`.

    Args:
        folder: where.
        info: the facts.
        trained: what was trained and how, as JSON.
        contents: files by their name relative to the folder.
    """
    info = public_info(info)
    value = {
        "format_version": FORMAT_VERSION,
        "base_model": info.base_model,
        "base_fingerprint": info.base_fingerprint,
        "expects_voice_prompt": info.expects_voice_prompt,
        "trained": dict(trained),
        "contents": {name: asdict(record) for name, record in contents.items()},
        "versions": dict(info.versions),
        "settings": dict(info.settings),
        "changed_from_recipe": dict(info.changed_from_recipe),
    }
    write_json(folder / INFO_FILE, value)


def read_info(path: Path) -> tuple[AdapterInfo, dict[str, FileRecord]]:
    """Read `vibevoice_finetune.json`.

    Returns:
        The facts, fit to be printed, and the record of each file by its name relative to the folder. The names are
        checked to lie inside.

    Raises:
        AdapterError: not JSON, written by a later version, or a value of the wrong kind.
    """
    raw = read_json(path)
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"{path}: format_version is {version!r:.200}; this version of vibevoice-finetune reads {FORMAT_VERSION}; "
            "install the version that wrote the adapter"
        )
    info = AdapterInfo(
        base_model=shown(_value(path, raw, "base_model", str)),
        base_fingerprint=shown(_value(path, raw, "base_fingerprint", str)),
        expects_voice_prompt=_value(path, raw, "expects_voice_prompt", bool),
        versions={shown(name): shown(version) for name, version in _value(path, raw, "versions", dict).items()},
        settings=_value(path, raw, "settings", dict),
        changed_from_recipe=_value(path, {"changed_from_recipe": {}, **raw}, "changed_from_recipe", dict),
    )
    contents = {}
    for name, record in _value(path, raw, "contents", dict).items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
            raise AdapterError(f"{path}: contents names {name!r:.200}, which lies outside the folder; do not trust it")
        if not isinstance(record, dict):
            raise AdapterError(f"{path}: the record of {name!r:.200} is {record!r:.200}; expected sha256, size_bytes")
        contents[str(parts)] = FileRecord(_value(path, record, "sha256", str), _value(path, record, "size_bytes", int))
    return info, contents


def write_card(folder: Path, info: AdapterInfo, plan: AdapterPlan, num_bytes: int) -> None:
    """Write the model card: what the folder is, what is inside, how to use it.

    Args:
        folder: where.
        info: the facts.
        plan: what was trained.
        num_bytes: of the folder's other files.
    """
    base = public_name(info.base_model)
    data = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        library_name="peft",
        pipeline_tag="text-to-speech",
        tags=["vibevoice", "lora", "text-to-speech"],
    )
    voice = " --voice reference.wav" if info.expects_voice_prompt else ""
    prompts = (
        "It was trained with voice prompts: give a reference recording with `--voice`."
        if info.expects_voice_prompt
        else "It was trained without voice prompts: generate without `--voice`."
    )
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        "# A fine-tuned VibeVoice",
        "",
        f"Base model: {_as_code(base)}. {prompts}",
        "",
        f"Trained parts (float32, {num_bytes / 1e6:,.0f} MB):",
        "",
        *_parts(plan),
        "",
        "## Use",
        "",
        "```",
        f"vibevoice-finetune generate --model_name_or_path {shlex.quote(shown(base))} --adapter .{voice} \\",
        '    --text "Hello." --output hello.wav',
        "```",
        "",
        "## Other programs",
        "",
        "The community's inference script takes this folder as its checkpoint. For the ComfyUI nodes, copy it into",
        "`models/vibevoice/loras/`.",
        *_peft(plan),
        "",
        f"`{INFO_FILE}` holds the settings of the run and a checksum of each file.",
        "",
    ]
    write_file(folder / CARD_FILE, "\n".join(lines))


def add_training_to_card(folder: Path, audio_hours: float) -> None:
    """Write into the model card how long the model listened and with which settings.

    Args:
        folder: `lora/`, complete.
        audio_hours: of the training rows.
    """
    card = folder / CARD_FILE
    text, _, _ = card.read_text(encoding="utf-8").partition(TRAINING_HEADING)
    info, _ = read_info(folder / INFO_FILE)
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    lines = [
        TRAINING_HEADING,
        "",
        f"{_duration(audio_hours)} of speech. Versions: {versions}. Settings that were given:",
        "",
        "```yaml",
        yaml.safe_dump(public_settings(info.settings), sort_keys=False).strip(),
        "```",
        "",
        *_recipe_lines(info),
    ]
    write_file(card, text.rstrip() + "\n\n" + "\n".join(lines))


def _recipe_lines(info: AdapterInfo) -> list[str]:
    """What the run took from a recipe, and what it did otherwise."""
    recipe = info.settings.get("recipe")
    if recipe is None:
        return []
    changed = public_settings(info.changed_from_recipe)
    said = ", ".join(f"{_as_code(name)} (there {_as_code(str(value))})" for name, value in changed.items())
    return [f"The recipe {_as_code(str(recipe))} was followed{f', except for {said}' if said else ''}.", ""]


def _parts(plan: AdapterPlan) -> list[str]:
    kind = "DoRA" if plan.use_dora else "LoRA"
    lora = f"{kind}, rank {plan.lora_r}, alpha {plan.lora_alpha:g}"
    parts = []
    if plan.lora_target_modules:
        parts.append(f"- language model: {lora}, on {', '.join(map(_as_code, plan.lora_target_modules))}")
    if plan.head == "lora":
        parts.append(f"- diffusion head: {lora}, in `diffusion_head_lora/`, and merged in `diffusion_head/`")
    if plan.head == "full":
        parts.append("- diffusion head: all weights, in `diffusion_head/`")
    if plan.train_connectors:
        parts.append("- both connectors: all weights")
    return parts


def _peft(plan: AdapterPlan) -> list[str]:
    """What PEFT alone makes of the folder."""
    others = ["the diffusion head"] if plan.head != "frozen" else []
    others += ["the connectors"] if plan.train_connectors else []
    if not plan.lora_target_modules:
        return [
            "PEFT alone has nothing to apply: `adapter_model.safetensors` holds a single pair of zeros, which changes",
            "nothing and is there because ComfyUI lists folders that have it.",
        ]
    left_out = f" It leaves out {' and '.join(others)}." if others else ""
    return [
        "",
        f"In Python, PEFT applies the language model's part.{left_out} Wrap the language model, as below;",
        "`PeftModel.from_pretrained` on the whole model has no effect.",
        "",
        "```python",
        "from peft import PeftModel",
        "",
        "language_model = model.model.language_model",
        'model.model.language_model = PeftModel.from_pretrained(language_model, "path/to/this/folder")',
        "```",
    ]


def _as_code(text: str) -> str:
    """Text as Markdown's code, whatever is in it."""
    return f"`{shown(text).replace('`', chr(39))}`"


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _is_place(text: str) -> bool:
    """Whether a value names a file or folder of this machine rather than something that is known elsewhere."""
    if _HUB_ID.fullmatch(text):
        return text.startswith(".") or Path(text).exists()
    return "/" in text or "\\" in text or text.startswith(("~", "."))


def _is_private(name: str) -> bool:
    return is_secret(name) or (name not in _MODELS and _PLACE_FLAG.fullmatch(name) is not None)


def _holds_place_or_secret(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_is_private, value)) or any(map(_holds_place_or_secret, value.values()))
    if isinstance(value, list):
        return any(map(_holds_place_or_secret, value))
    return isinstance(value, str) and (_is_place(value) or TOKEN.search(value) is not None)


def _value(path: Path, raw: Mapping[str, Any], key: str, kind: type) -> Any:
    value = raw.get(key)
    if not isinstance(value, kind):
        raise AdapterError(f"{path}: {key} is {value!r:.200}; expected {kind.__name__}; download or copy it again")
    return value
