"""`generate` as its user meets it: files, what is said about them, and what is refused before anything is loaded."""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model.load import load_for_training, model_fingerprint, open_base_model
from vibevoice_finetune.commands import table
from vibevoice_finetune.commands.generate import GenerateFlags, parse
from vibevoice_finetune.generation import generate as generate_room
from vibevoice_finetune.generation import loop
from vibevoice_finetune.generation.generate import ModelSource
from vibevoice_finetune.generation.order import GenerationProgress, output_paths

FRAME = 3_200  # samples, 0.133 s
FAST = ["--num_diffusion_steps", "2", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="session")
def talkative(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that always goes on: all that enters has much of one direction, and frames score by it.

    The output matrix is the embedding: what any token has of the direction, the frame's row has three times.
    """
    folder = tmp_path_factory.mktemp("models") / "talkative"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.language_model.embed_tokens.weight"]
    frame = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    (frame_id,) = (token["id"] for token in frame if token["content"] == "<|vision_pad|>")
    embedding[:, 0] = 10.0
    embedding[frame_id, 0] = 30.0
    for connector in ("acoustic", "semantic"):
        tensors[f"model.{connector}_connector.fc2.bias"][0] = 10.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def adapter(talkative: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of it, trained with voice prompts as it says; as a run leaves it, in `lora/`."""
    checkpoint = open_base_model(str(talkative))
    model = load_for_training(checkpoint, torch.float32, "cpu")
    plan = AdapterPlan(4, 8, 0.0, ("q_proj",), "frozen", train_connectors=False)
    attach(model, plan)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05)
    folder = tmp_path_factory.mktemp("out") / "checkpoint-3"
    info = AdapterInfo(str(talkative), model_fingerprint(checkpoint), expects_voice_prompt=True)
    save_adapter(model, plan, folder / "lora", info)
    return folder


Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(talkative: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in an empty folder; its exit code, the lines of stdout, and stderr."""
    monkeypatch.chdir(tmp_path)

    def run_command(*words: str, model: Path = talkative) -> tuple[int, list[str], str]:
        code = table.main(["generate", "--model_name_or_path", str(model), *FAST, *words])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run_command


def write_voice(path: Path, seconds: float = 0.5) -> Path:
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * 24_000))
    soundfile.write(path, noise, 24_000)
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_sentence_becomes_a_file(run: Run, suffix: str) -> None:
    name = f"out.{suffix}"
    code, lines, said = run("--text", "Hello.", "--output", name, "--max_length_sec", "0.3")
    assert code == 0
    assert lines == [f"{name}: 0.3 s; cut off there, the model had not ended: see --max_length_sec"]
    assert "0.3 s of audio in " in said
    assert "real-time factor " in said
    samples, rate_hz = soundfile.read(name)
    assert rate_hz == 24_000
    assert len(samples) == 2 * FRAME
    assert np.abs(samples).max() > 0.001


def test_the_same_seed_writes_the_same_file(run: Run) -> None:
    for name, seed in (("a.wav", "1"), ("b.wav", "1"), ("c.wav", "2")):
        assert run("--text", "Hello.", "--output", name, "--max_length_sec", "0.2", "--seed", seed)[0] == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
    assert Path("a.wav").read_bytes() != Path("c.wav").read_bytes()


def test_scripts_with_voices_in_one_batch(run: Run, tmp_path: Path) -> None:
    write_voice(tmp_path / "anna.wav")
    write_voice(tmp_path / "ben.wav", 0.3)
    dialogue = [{"speaker": 1, "text": "Hi."}, {"speaker": 2, "text": "Yes?"}]
    Path("a.json").write_text(json.dumps({"script": dialogue, "voices": ["anna.wav", "ben.wav"]}))
    Path("b.txt").write_text("Plain text.")
    code, lines, _ = run(
        *("--script", "a.json", "b.txt", "--text", "Speaker 3: First."),
        *("--voice", "anna.wav", "--output", "out.wav", "--max_length_sec", "0.2"),
    )
    assert code == 0
    assert [line.split(":")[0] for line in lines] == ["out-1.wav", "out-2.wav", "out-3.wav"]
    assert all(soundfile.info(f"out-{number}.wav").frames == FRAME for number in (1, 2, 3))
    assert not Path("out.wav").exists()


def test_a_new_line_can_be_typed(tmp_path: Path) -> None:
    words = [
        "--model_name_or_path",
        "m",
        "--output",
        str(tmp_path / "a.wav"),
        "--text",
        r"Speaker 1: Hi.\nSpeaker 2: Yes?",
    ]
    (script,) = parse(words).request.scripts
    assert [turn.text for turn in script.turns] == ["Hi.", "Yes?"]


def test_the_adapter_is_applied_and_reported(run: Run, adapter: Path, tmp_path: Path) -> None:
    def say(name: str, *words: str) -> str:
        code, _, said = run("--text", "Hello.", "--output", name, "--max_length_sec", "0.3", *words)
        assert code == 0
        return said

    warning = "warning: the adapter was trained with voice prompts and none is given"
    assert "adapter" not in say("base.wav")
    said = say("tuned.wav", "--adapter", str(adapter))
    assert f"adapter {adapter / 'lora'} at scale 1; base model: matches" in said
    assert "language model: LoRA of rank 4, 4 tensors" in said
    assert warning in said
    assert warning not in say("off.wav", "--adapter", str(adapter), "--adapter_scale", "0")
    voice = str(write_voice(tmp_path / "anna.wav"))
    assert warning not in say("voiced.wav", "--adapter", str(adapter / "lora"), "--voice", voice)
    base, tuned, off = (Path(name).read_bytes() for name in ("base.wav", "tuned.wav", "off.wav"))
    assert off == base
    assert tuned != base


def test_a_script_of_which_nothing_is_said(run: Run, tiny_checkpoint: Path) -> None:
    """This random model chooses the start of speech for ever, until its decisions are used up."""
    code, lines, said = run("--text", "Hello.", "--output", "a.wav", "--max_length_sec", "0.2", model=tiny_checkpoint)
    assert code == 2
    assert lines == []
    assert said.endswith(
        'error: --text "Hello.": the model said nothing; try another --seed, --cfg_scale or --voice.\n'
    )
    assert not Path("a.wav").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "Hi.", "--output", "a.mp3"], "--output a.mp3: ends in .mp3; name the file .wav, .flac, .ogg."),
        (["--text", "Hi.", "--output", "a"], "--output a: has no suffix; name the file .wav, .flac, .ogg."),
        (
            ["--text", "Hi.", "--output", "no/a.wav"],
            "--output no/a.wav: there is no folder no; make it, or name another.",
        ),
        (["--text", "Hi.", "--output", "dir.wav"], "--output dir.wav: is a folder; name a file in it."),
        (["--output", "a.wav"], 'nothing to say: give --text "Hello." or --script FILE.'),
        (
            ["--text", "Hi."],
            "--output: missing; all flags: vibevoice-finetune generate --help",
        ),
        (["--text", "Hi.", "there", "--output", "a.wav"], '"there" belongs to no flag'),
        (["--text", "Hi.", "--output", "a.wav", "--sed", "1"], "--sed is not a flag; did you mean --seed?"),
        (["--text", "Hi.", "--output", "a.wav", "--seed", "x"], "--seed x: must be a whole number."),
        (["--text", "Hi.", "--output", "a.wav", "--dtype", "fp16"], "--dtype fp16: must be one of bf16, bfloat16,"),
        (
            ["--text", "Hi.", "--output", "a.wav", "--cfg_scale", "-1"],
            "--cfg_scale -1: must be at least 0.",
        ),
        (["--text", "Hi.", "--output", "a.wav", "--voice", "b.wav"], "--voice: b.wav does not exist"),
        (
            ["--text", "Hi.", "--output", "a.wav", "--adapter_scale", "0.5"],
            "--adapter_scale needs --adapter: there is nothing to scale.",
        ),
        (["--text", "Hi.", "--output", "a.wav", "--voice", "silent.wav"], "--voice: silent.wav is silent"),
        (
            ["--script", "own.json", "--output", "a.wav", "--voice", "v.wav"],
            "--voice: every script names voices of its own; leave the flag out.",
        ),
        (["--text", "", "--output", "a.wav"], '--text "": the text is empty'),
        (["--text", "\n ", "--output", "a.wav"], '--text "": the text is empty'),
        (["--script", "a.txt", "--output", "a.wav"], "--script a.txt: cannot be read (No such file or directory)"),
        (
            ["--text", "Speaker 1: Hi.\nSpeaker 2: Yes?", "--voice", "v.wav", "--output", "a.wav"],
            '--text "Speaker 1: Hi. Speaker 2: Yes?": 1 voice prompt for 2 speakers; give one for each speaker',
        ),
    ],
)
def test_what_is_refused_before_the_model_is_loaded(run: Run, words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "dir.wav").mkdir()
    write_voice(tmp_path / "v.wav")
    soundfile.write(tmp_path / "silent.wav", np.zeros(24_000), 24_000)
    (tmp_path / "own.json").write_text('{"script": "Hi.", "voices": ["v.wav"]}')
    code, lines, said = run(*words, model=Path("/no/such/model"))
    assert (code, lines) == (2, [])
    assert said.startswith(f"error: {message}")
    assert len(said.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to")
def test_a_folder_that_cannot_be_written_to_is_said_before_the_model_is_loaded(run: Run) -> None:
    code, _, said = run("--text", "Hi.", "--output", "/proc/a.wav", model=Path("/no/such/model"))
    assert code == 2
    assert re.fullmatch(r"error: /proc: cannot be written \(.*\); choose another place with --output\.\n", said)


def test_a_name_that_is_too_long_is_one_line(run: Run) -> None:
    """254 characters are not; with a number at their end they are."""
    output = "x" * 250 + ".wav"
    code, _, said = run("--text", "Hi.", "--text", "Ho.", "--output", output, model=Path("/no/such/model"))
    assert code == 2
    assert said.endswith(": cannot be used (File name too long); name another file.\n")
    assert len(said.splitlines()) == 1


def test_a_file_that_is_there_is_kept_unless_told_otherwise(run: Run) -> None:
    Path("a.wav").write_bytes(b"precious")
    words = ("--text", "Hi.", "--output", "a.wav", "--max_length_sec", "0.2")
    code, _, said = run(*words, model=Path("/no/such/model"))
    assert (code, said) == (
        2,
        "error: --output a.wav: exists already; name another file, or replace it with --overwrite.\n",
    )
    assert Path("a.wav").read_bytes() == b"precious"
    assert run(*words, "--overwrite")[0] == 0
    assert soundfile.info("a.wav").frames == FRAME


@pytest.mark.parametrize("output", ["anna.wav", "sub/../anna.wav", "link.wav", "hard.wav"])
def test_a_voice_is_never_replaced(run: Run, tmp_path: Path, output: str) -> None:
    voice = write_voice(tmp_path / "anna.wav")
    before = voice.read_bytes()
    Path("sub").mkdir()
    Path("link.wav").symlink_to(voice)
    Path("hard.wav").hardlink_to(voice)
    Path("own.json").write_text('{"script": "Hi.", "voices": ["anna.wav"]}')
    for words in (["--text", "Hi.", "--voice", "anna.wav"], ["--script", "own.json"]):
        code, _, said = run(*words, "--output", output, "--overwrite", model=Path("/no/such/model"))
        assert (code, said) == (
            2,
            f"error: --output {output}: is a voice of this script, and would be lost; name another file.\n",
        )
    assert voice.read_bytes() == before


def test_one_of_several_numbered_files_is_there_already(run: Run) -> None:
    Path("a-2.wav").write_bytes(b"precious")
    words = ("--text", "Hi.", "--text", "Ho.", "--output", "a.wav")
    code, _, said = run(*words, model=Path("/no/such/model"))
    assert code == 2
    assert said.startswith("error: --output a-2.wav: exists already;")


def test_a_script_that_does_not_fit_leaves_the_others(run: Run) -> None:
    """The model has 4,096 positions, and its tokenizer one token per byte."""
    words = ("--text", "One.", "--text", "x" * 5000, "--text", "Three.", "--output", "a.wav")
    code, lines, said = run(*words, "--max_length_sec", "0.2")
    assert code == 2
    assert [line.split(":")[0] for line in lines] == ["a-1.wav", "a-3.wav"]
    assert Path("a-1.wav").is_file()
    assert Path("a-3.wav").is_file()
    assert not Path("a-2.wav").exists()
    assert 'not spoken: --text "xxx' in said
    assert "which leaves none for speech; split it or give shorter voices." in said
    assert said.splitlines()[-1] == (
        "error: 1 of 3 scripts could not be spoken, see above; the files of the others are written."
    )


def test_what_was_spoken_is_kept_when_the_rest_is_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[int] = []

    def speak_once(*args: Any, **settings: Any) -> Any:
        if spoken:
            raise KeyboardInterrupt
        spoken.append(1)
        return loop.speak(*args, **settings)

    monkeypatch.setattr(generate_room, "speak", speak_once)
    words = ("--text", "One.", "--text", "Two.", "--output", "a.wav", "--batch_size", "1")
    code, lines, _ = run(*words, "--max_length_sec", "0.2")
    assert code == 130
    assert [line.split(":")[0] for line in lines] == ["a-1.wav"]
    assert soundfile.info("a-1.wav").frames == FRAME
    assert sorted(path.name for path in Path().iterdir()) == ["a-1.wav"]


def test_nothing_but_our_own_lines_is_on_the_terminal(run: Run) -> None:
    """No progress bars or remarks of libraries, before a result or before an error."""
    _, _, said = run("--text", "Hello.", "--output", "a.wav", "--max_length_sec", "0.2")
    assert re.fullmatch(r"0\.1 s of audio in [\d.]+ s: real-time factor [\d.]+\n", said)
    _, _, said = run("--text", "Hello.", "--output", "b.wav", "--adapter", "/no/such/adapter")
    assert re.fullmatch(r"error: /no/such/adapter: no such folder.*\n", said)


@pytest.mark.parametrize(
    "text", ["😀🎉", "!?…", "你好。", "Hello\tthere", "<b>bold</b> [red]x[/red]", "\u202eabc", "a" * 900]
)
def test_unusual_texts_are_spoken(run: Run, text: str) -> None:
    code, lines, _ = run("--text", text, "--output", "a.wav", "--max_length_sec", "0.2")
    assert (code, len(lines)) == (0, 1)


def test_four_speakers_with_one_voice(run: Run, tmp_path: Path) -> None:
    write_voice(tmp_path / "v.wav")
    text = "\n".join(f"Speaker {number}: Hi." for number in (1, 2, 3, 4))
    code, _, said = run("--text", text, "--voice", "v.wav", "--output", "a.wav", model=Path("/no/such/model"))
    assert code == 2
    assert "1 voice prompt for 4 speakers; give one for each speaker" in said


def test_without_diffusers_it_is_said_before_the_model_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, _, said = run("--text", "Hi.", "--output", "a.wav", model=Path("/no/such/model"))
    assert (code, said) == (2, 'error: diffusers is not installed; run: pip install "vibevoice-finetune[generate]"\n')


def test_the_flags_of_generate(tmp_path: Path) -> None:
    """Every flag with its default; the list grows on purpose."""
    order = parse(["--model_name_or_path", "m", "--text", "Hi.", "--output", str(tmp_path / "a.wav")])
    assert order.source == ModelSource("m")
    request = order.request
    assert (request.cfg_scale, request.num_diffusion_steps, request.seed) == (1.3, 10, 42)
    assert (request.max_length_sec, request.batch_size) == (300.0, 8)
    words = {
        "--model_name_or_path": "m",
        "--adapter": "out/lora",
        "--adapter_scale": "0.5",
        "--text": "Hi.",
        "--output": str(tmp_path / "a.wav"),
        "--cfg_scale": "2",
        "--num_diffusion_steps": "20",
        "--seed": "7",
        "--max_length_sec": "9",
        "--batch_size": "3",
        "--dtype": "bf16",
        "--device": "cpu",
        "--processor_name_or_path": "p",
        "--cache_dir": "c",
    }
    order = parse([word for pair in words.items() for word in pair])
    assert order.source == ModelSource("m", "out/lora", 0.5, torch.bfloat16, "cpu", "p", Path("c"))
    request = order.request
    assert (request.cfg_scale, request.num_diffusion_steps, request.seed) == (2.0, 20, 7)
    assert (request.max_length_sec, request.batch_size) == (9.0, 3)
    assert {f"--{field.name}" for field in fields(GenerateFlags)} == {*words, "--script", "--voice", "--overwrite"}


def test_files_are_numbered_with_leading_zeros() -> None:
    paths = [str(path) for path in output_paths(Path("out/a.b.flac"), 10)]
    assert (paths[0], paths[-1]) == ("out/a.b-01.flac", "out/a.b-10.flac")


def test_progress_is_a_line_every_ten_seconds_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock_sec = iter((100.0, 105.0, 110.0, 115.0, 121.0))  # the start, then each update
    monkeypatch.setattr(time, "monotonic", lambda: next(clock_sec))
    with GenerationProgress(Console(stderr=True)) as progress:
        for audio_sec in (4.0, 8.0, 12.0, 14.0):
            progress.update(audio_sec)
    assert capsys.readouterr().err.splitlines() == [
        "8.0 s of audio, real-time factor 1.25",
        "14.0 s of audio, real-time factor 1.50",
    ]
