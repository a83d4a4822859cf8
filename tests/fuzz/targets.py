"""What reads files of strangers, as functions of bytes: it is wrong if anything but a `UserError` comes out.

Each target writes the bytes to where its reader finds them and reads. A case is good if the reader gives a result or a
`UserError` whose message is one that a person can act on: not empty, of bounded length.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

from vibevoice_finetune.adapters.info import AdapterInfo, FileRecord, write_info
from vibevoice_finetune.adapters.read import open_adapter
from vibevoice_finetune.audio.source import AudioSource, load_audio, parse_audio
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.data.jsonl import BadRows, Columns, read_jsonl
from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.headers import read_header
from vibevoice_finetune.generation.scripts import read_scripts
from vibevoice_finetune.latents.shards import Part
from vibevoice_finetune.latents.store import Latents, LatentStore
from vibevoice_finetune.training.run_checkpoints import MARKER, is_complete

MAX_MESSAGE = 20_000


@dataclass(frozen=True)
class Target:
    """A reader, and files that it accepts."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def run(target: Target, data: bytes) -> bool:
    """One case; whether there was a result rather than a refusal."""
    try:
        target.read(data)
    except UserError as error:
        message = str(error)
    else:
        return True
    assert 0 < len(message) < MAX_MESSAGE, f"a message of {len(message)} characters"
    return False


def make_targets(folder: Path) -> Mapping[str, Target]:
    """All targets, with their files below the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tones = _tones(folder)
    lines = [
        {"text": "Speaker 0: Hello.", "audio": "tone.wav"},
        {"text": "Speaker 1: Hi.\nSpeaker 2: Yes?", "audio": "tone.wav", "voice_prompts": ["tone.wav", "tone.wav"]},
        {"text": "Speaker 0: An array.", "audio": {"array": [0.1, -0.1, 0.2], "sampling_rate": 16000}, "speaker": 3},
    ]
    jsonl = "".join(json.dumps(line) + "\n" for line in lines).encode()
    scripts = [
        [{"speaker": 1, "text": "Hello."}, {"speaker": 2, "text": "Hi."}],
        {"script": "Speaker 0: Hello.", "voices": ["tone.wav"]},
        [{"script": "One."}, {"script": [{"speaker": 3, "text": "Two."}]}],
    ]
    config = b"learning_rate: 0.001\nnum_train_epochs: 2\nbf16: false\nlora_target_modules: [q_proj, v_proj]\n"
    return {
        "jsonl": Target(partial(_jsonl, folder), (jsonl,)),
        "script": Target(_script, (b"Speaker 0: Hello.\nSpeaker 1: Hi.\n  speaker 12 : Yes?", b"only text")),
        "scripts": Target(partial(_scripts, folder), tuple(json.dumps(script).encode() for script in scripts)),
        "config": Target(partial(_config, folder), (config, b"model_name_or_path: a\nwarmup_ratio: 0.1\n")),
        "audio": Target(_audio, tones),
        "marker": Target(partial(_marker, folder), (b'{"files": {"a": 1, "b/c": 2}}', b"{}")),
        **_adapters(folder),
        **_shards(folder),
    }


def _tones(folder: Path) -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    found = []
    for name, kind in [("tone.wav", "PCM_16"), ("f.wav", "FLOAT"), ("tone.flac", "PCM_16"), ("tone.ogg", "VORBIS"),
                       ("tone.mp3", "MPEG_LAYER_III"), ("tone.au", "PCM_16")]:  # fmt: skip
        soundfile.write(folder / name, 0.1 * rng.standard_normal(600), 24_000, subtype=kind)
        found.append((folder / name).read_bytes())
    return tuple(found)


def _jsonl(folder: Path, data: bytes) -> None:
    path = folder / "rows.jsonl"
    path.write_bytes(data)
    bad_rows = BadRows("skip")
    for row in read_jsonl(path, Columns(), bad_rows):
        parse_script(row.text, row.where)
        _ = row.audio.label


def _script(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    turns = parse_script(text, "the text", default_speaker=True)
    assert sorted({turn.speaker for turn in turns}) == list(range(len({turn.speaker for turn in turns})))
    assert all(turn.text.strip() for turn in turns)


def _scripts(folder: Path, data: bytes) -> None:
    path = folder / "scripts.json"
    path.write_bytes(data)
    assert read_scripts(path)


def _config(folder: Path, data: bytes) -> None:
    path = folder / "config.yaml"
    path.write_bytes(data)
    out = ["--train_jsonl", "x.jsonl", "--model_name_or_path", "m", "--output_dir", str(folder / "out")]
    parse(["--config", str(path), *out, "--use_cpu", "True", "--report_to", "none"])


def _audio(data: bytes) -> None:
    source: AudioSource = parse_audio(data, None, "row")
    samples = load_audio(source)
    assert samples.ndim == 1
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()


def _marker(folder: Path, data: bytes) -> None:
    checkpoint = folder / "checkpoint-1"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / MARKER).write_bytes(data)
    assert is_complete(checkpoint) in (True, False)


def _adapters(folder: Path) -> dict[str, Target]:
    """One target for each file of an adapter folder."""
    root = folder / "adapter"
    root.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "lora_dropout": 0.0}
    config |= {"task_type": "FEATURE_EXTRACTION", "bias": "none", "rank_pattern": {"layers.0": 2}}
    name = "base_model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(2, 4), name.format("B"): torch.ones(4, 2)}
    head = {"cond_proj.weight": torch.ones(4, 4)}
    (root / "diffusion_head").mkdir(exist_ok=True)
    (root / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, root / "adapter_model.safetensors")
    torch.save(head, root / "diffusion_head" / "diffusion_head_full.bin")
    (root / "diffusion_head_lora").mkdir(exist_ok=True)
    head_config = config | {"target_modules": r".*\.?cond_proj", "rank_pattern": {"cond.*": 2}}
    (root / "diffusion_head_lora" / "lora_config.json").write_text(json.dumps(head_config), encoding="utf-8")
    head_name = "_orig_mod.base_model.model.cond_proj.lora_{}.weight"
    save_file(
        {head_name.format("A"): torch.ones(2, 4), head_name.format("B"): torch.ones(4, 2)},
        root / "diffusion_head_lora" / "lora.safetensors",
    )
    files = (
        "adapter_config.json",
        "adapter_model.safetensors",
        "diffusion_head/diffusion_head_full.bin",
        "diffusion_head_lora/lora_config.json",
        "diffusion_head_lora/lora.safetensors",
    )
    contents = {file: (root / file).read_bytes() for file in files}
    records = {
        file: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for file, content in contents.items()
    }
    write_info(root, AdapterInfo("base", "fingerprint", expects_voice_prompt=True), {"lora": 2}, records)
    contents["vibevoice_finetune.json"] = (root / "vibevoice_finetune.json").read_bytes()
    (root / "vibevoice_finetune.json").unlink()

    def read(file: str, data: bytes) -> None:
        path = root / file
        path.write_bytes(data)
        try:
            contents_read = open_adapter(root)
            for block in contents_read.blocks:
                for stored in block.tensors():
                    assert stored.tensor.numel() >= 0
        finally:
            path.unlink()
            if file in files:
                path.write_bytes(contents[file])

    return {f"adapter {file}": Target(partial(read, file), (data,)) for file, data in contents.items()}


def _shards(folder: Path) -> dict[str, Target]:
    """A damaged shard of the latent store: what is read is right, or is said not to be there."""
    rng = np.random.default_rng(1)
    right = {f"{number:032x}": rng.standard_normal((number + 1, 4)).astype(np.float32) for number in range(3)}
    place = folder / "latents"
    store = LatentStore(place, "fingerprint", 4, 6)
    with store.writer() as writer:
        for key, acoustic in right.items():
            writer.add(key, Latents(acoustic, np.ones((len(acoustic), 6), np.float32)))
    (shard,) = (
        path for path in store.shard_folder.glob("*.safetensors") if read_header(path).metadata["part"] == "acoustic"
    )
    whole = shard.read_bytes()

    def read(data: bytes) -> None:
        shard.write_bytes(data)
        try:
            damaged = LatentStore(place, "fingerprint", 4, 6)
            for key, acoustic in right.items():
                if damaged.missing(np.array([key.encode()], dtype="S32"), Part.ACOUSTIC).any():
                    continue
                assert np.array_equal(damaged.read(key).acoustic_FC, acoustic), "wrong numbers passed"
        finally:
            shard.write_bytes(whole)

    return {"shard": Target(read, (whole,))}
