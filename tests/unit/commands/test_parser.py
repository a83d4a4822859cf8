"""The one parser: what words become, and what is said of a wrong one. Every command has it."""

import os
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from vibevoice_finetune.commands import table
from vibevoice_finetune.commands.generate import GenerateFlags
from vibevoice_finetune.commands.parser import parse, parse_flags
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.data import DataArguments
from vibevoice_finetune.flags.declare import COUNT, flag
from vibevoice_finetune.flags.loop import LoopFlags
from vibevoice_finetune.flags.model import ModelArguments
from vibevoice_finetune.flags.names import GONE_FLAGS, OTHER_WORDS

SHORT = ["--model_name_or_path", "M", "--train_jsonl", "F", "--output_dir", "O", "--do_train", "--report_to", "none"]
NAMES = [command.name for command in table.COMMANDS]


@dataclass(kw_only=True)
class Flags:
    """One flag of each kind."""

    place: str = flag(help="A place.", positional=True, is_path=True)
    needed: str = flag(help="Needed.")
    number: int = flag(3, help="100 % of it.", range=COUNT)
    share: float | None = flag(None, help="A share.")
    wanted: bool = flag(False, help="Wanted.")
    bare_word: str | None = flag(None, help="Alone or not.", bare="alone")
    texts: list[str] = flag([], help="Texts.")
    files: list[str] = flag([], help="Files.", is_list=True, is_path=True)
    joined: str = flag("a,b", help="Joined.", is_list=True)


def read(*words: str) -> Flags:
    return parse_flags(Flags, "try", ["here", "--needed", "x", *words], "Try it.")


def test_defaults_are_those_of_the_dataclass() -> None:
    assert read() == Flags(place="here", needed="x")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--number", "5"], {"number": 5}),
        (["--number=5"], {"number": 5}),
        (["--share", "-1e-3"], {"share": -0.001}),
        (["--share", "-.5"], {"share": -0.5}),
        (["--wanted"], {"wanted": True}),
        (["--wanted", "false"], {"wanted": False}),
        (["--wanted=Yes"], {"wanted": True}),
        (["--bare-word"], {"bare_word": "alone"}),
        (["--bare_word", "b"], {"bare_word": "b"}),
        (["--bare-word=b-c_d"], {"bare_word": "b-c_d"}),
        (["--texts", "a b", "--texts=-c"], {"texts": ["a b", "-c"]}),
        (["--files", "a", "b,c", "--files", "d"], {"files": ["a", "b,c", "d"]}),
        (["--joined", "x", "y"], {"joined": "x,y"}),
        (["--number", "5", "--number", "6"], {"number": 6}),
    ],
)
def test_words_become_values(words: list[str], expected: dict[str, object]) -> None:
    found = read(*words)
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--number", "five"], "--number five: must be a whole number."),
        (["--number", "0"], "--number 0: must be at least 1."),
        (["--number", "9" * 5000], f"--number {'9' * 79}…: must be a whole number."),
        (["--number", "9" * 30], f"--number {'9' * 30}: must be at most 2,147,483,647."),
        (["--number"], '--number needs a value; one that begins with a dash is written --number="-…".'),
        (["--number", "a\nb"], "--number a\\nb: must be a whole number."),
        (["--share", "nan"], "--share nan: must be a finite number."),
        (["--share", "1e999"], "--share inf: must be a finite number."),
        (["--wanted", "perhaps"], "--wanted perhaps: must be True or False."),
        (["--numbr", "5"], "--numbr is not a flag; did you mean --number?"),
        (["--no_wanted"], "--no_wanted is not a flag; write --wanted False."),
        (["--zzz"], "--zzz is not a flag (all flags: --help)."),
        (["-n", "5"], "-n is not a flag (all flags: --help)."),
        (["stray"], '"stray" belongs to no flag; a value with spaces needs quotation marks.'),
        (["--texts", "\udcff"], "--texts \\udcff: is not valid UTF-8; rename the file, or correct the text."),
        (["--needed", "a\0b"], "--needed a\\x00b: holds a NUL character; leave it out."),
        (["--files", "a/" + "b" * 256], "the name is too long (256 bytes; a file system takes 255"),
        (["--files", "a/" * 2500], "the name is too long"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read(*words)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_missing_is_named_together() -> None:
    with pytest.raises(ArgumentError, match=r"^PLACE, --needed: missing; all flags: vibevoice-finetune try --help$"):
        parse_flags(Flags, "try", [], "Try it.")


def test_the_help_has_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_flags(Flags, "try", ["--help", "--nonsense"], "Try it.")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "vibevoice-finetune try PLACE [--flag value ...]" in text
    for line in ("--number N", "100 % of it [3]", "Needed [required]", "Joined [a,b]", "--wanted [True|False]"):
        assert line in text


@pytest.mark.parametrize("command", NAMES)
def test_every_command_has_the_same_manners(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([command, "--help"]) == 0
    printed = capsys.readouterr()
    assert f"usage: vibevoice-finetune {command} " in printed.out
    assert printed.err == ""
    for wrong in (["--modle_name_or_path", "x"], ["--seed=\udcff"]):
        assert table.main([command, *wrong]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: --")
        assert printed.err.count("\n") == 1


def test_the_help_of_train_has_all_of_our_flags_and_that_of_all_transformers_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = [f"--{field.name} " for kind in (ModelArguments, DataArguments, LoopFlags) for field in fields(kind)]
    assert table.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in own if name not in text] == []
    assert "--hub_private_repo" not in text
    assert table.main(["train", "--help_all"]) == 0
    text = capsys.readouterr().out
    assert [name for name in [*own, "--hub_private_repo ", "--adam_beta1 "] if name not in text] == []


@pytest.mark.parametrize("command", ["train", "generate", "merge"])
def test_help_answers_within_half_a_second(command: str) -> None:
    """Seconds of the processor: others may use the machine meanwhile."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "vibevoice_finetune", command, "--help"], capture_output=True, check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.5


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--lora_rank", "--lora_r"),
        ("--lr", "--learning_rate"),
        ("--epochs", "--num_train_epochs"),
        ("--batch_size", "--per_device_train_batch_size"),
        ("--torch_dtype", "--bf16"),
        ("--model", "--model_name_or_path"),
        ("--dataset", "--dataset_name"),
        ("--output", "--output_dir"),
        ("--out", "--output_dir"),
        ("--steps", "--max_steps"),
        ("--Learning-Rate", "--learning_rate"),
        ("--lora_alhpa", "--lora_alpha"),
    ],
)
def test_the_fields_other_words_are_known(word: str, meant: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{word.replace('-', '[-_]')} is not a flag; did you mean {meant}[?]$"):
        parse([*SHORT, word, "4"])


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--text_file", "--script"),
        ("--voice_file", "--voice"),
        ("--lora_path", "--adapter"),
        ("--adapter_path", "--adapter"),
        ("--model_path", "--model_name_or_path"),
        ("--out", "--output"),
        ("--torch_dtype", "--dtype"),
        ("--steps", "--num_diffusion_steps"),
        ("--train_batch_size", "--batch_size"),
    ],
)
def test_the_words_of_other_programs_that_speak(word: str, meant: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{word} is not a flag; did you mean {meant}[?]$"):
        parse_flags(GenerateFlags, "generate", [word, "x"], "Speak.")


def test_other_words_lead_to_flags_that_there_are() -> None:
    kinds = (ModelArguments, DataArguments, LoopFlags, GenerateFlags)
    known = {field.name for kind in kinds for field in fields(kind)}
    known |= {"per_device_eval_batch_size", "project", "dataloader_num_workers", "layout", "clip_sec", "processes"}
    assert set(OTHER_WORDS.values()) <= known
    assert not set(OTHER_WORDS) & {field.name for kind in kinds[:3] for field in fields(kind)}


@pytest.mark.parametrize("name", ["debug_ce_details", "debug_overfit", "overwrite_output_dir", "no_cuda"])
def test_flags_of_older_scripts_get_a_line(name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse([*SHORT, f"--{name}", "True"])
    assert str(caught.value) == f"--{name} {GONE_FLAGS[name]}."
