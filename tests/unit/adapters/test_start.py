"""Going on from an adapter: its layers and ranks become the run's, its tensors the first ones of the run."""

import shlex
from pathlib import Path

import pytest
import torch

from vibevoice_finetune.adapters.apply import load_adapter
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, merge, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.adapters.start import StartAdapter, fill, plan_of, taking_over
from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.base_model.load import load_for_training, model_fingerprint, open_base_model
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.errors import AdapterError, ArgumentError

PLANS = {
    "lora": AdapterPlan(3, 7, 0.0, ("q_proj", "v_proj"), "frozen", False),
    "ranks": AdapterPlan(3, 6, 0.0, ("q_proj", "v_proj"), "lora", False, lora_rank_pattern={"v_proj": 2}),
    "pissa": AdapterPlan(2, 6, 0.0, ("down_proj",), "full", False, init_lora_weights="pissa", use_rslora=True),
    "dora": AdapterPlan(2, 6, 0.0, ("o_proj",), "frozen", True, use_dora=True),
    "head": AdapterPlan(2, 4, 0.0, (), "lora", True),
}


@pytest.fixture(scope="module")
def base(golden_dir: Path) -> Path:
    return golden_dir / "tied" / "checkpoint"


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each plan, far from the base."""
    checkpoint = open_base_model(str(base))
    info = AdapterInfo("some/VibeVoice", model_fingerprint(checkpoint), expects_voice_prompt=True)
    folders = {}
    for name, plan in PLANS.items():
        model = load_for_training(checkpoint, torch.float32, "cpu")
        attach(model, plan)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in trainable_parameters(model).values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        folders[name] = tmp_path_factory.mktemp(name) / "lora"
        save_adapter(model, plan, folders[name], info)
    return folders


def line(base: Path, adapter: Path, extra: str = "") -> Arguments:
    words = f"--model_name_or_path {base} --adapter_name_or_path {adapter} --train_jsonl F --output_dir O"
    return parse(shlex.split(f"{words} --do_train --report_to none --lora_dropout 0 {extra}"))


@pytest.mark.parametrize("name", PLANS)
def test_the_run_begins_where_the_adapter_ended(name: str, base: Path, made: dict[str, Path]) -> None:
    arguments, start = taking_over(line(base, made[name]))
    assert start is not None
    plan, old = plan_of(arguments, start), PLANS[name]
    assert (plan.head, plan.train_connectors, plan.use_dora) == (old.head, old.train_connectors, old.use_dora)
    assert plan.lora_target_modules == tuple(sorted(old.lora_target_modules))
    checkpoint = open_base_model(str(base))
    model, loaded = (load_for_training(checkpoint, torch.float32, "cpu") for _ in range(2))
    attach(model, plan)
    fill(model, start.contents)
    load_adapter(loaded, made[name])
    assert {value.dtype for value in trainable_parameters(model).values()} == {torch.float32}
    merge(model)
    merge(loaded)
    expected, before = (
        dict(one.named_parameters()) for one in (loaded, load_for_training(checkpoint, torch.float32, "cpu"))
    )
    changed = 0
    for name_of, value in model.named_parameters():
        torch.testing.assert_close(value, expected[name_of], rtol=1e-5, atol=1e-5, msg=name_of)
        changed += not torch.equal(value, before[name_of])
    assert changed > 1


@pytest.mark.parametrize(
    ("name", "extra", "said"),
    [
        ("lora", "--lora_r 8", r"--lora_r 8: the adapter .* has 3; leave the flag out, or merge"),
        ("lora", "--lora_target_modules q_proj", r"--lora_target_modules q_proj: the adapter .* has q_proj,v_proj"),
        ("lora", "--train_language_model True", r"--train_language_model True: the adapter .* has False"),
        ("dora", "--use_dora False", r"--use_dora False: the adapter .* has True"),
        ("head", "--train_diffusion_head True", r"--train_diffusion_head True: the adapter .* has False"),
    ],
)
def test_a_flag_that_says_otherwise_is_an_error(
    name: str, extra: str, said: str, base: Path, made: dict[str, Path]
) -> None:
    with pytest.raises(ArgumentError, match=said):
        taking_over(line(base, made[name], extra))


def test_flags_that_agree_or_add_a_part_are_fine(base: Path, made: dict[str, Path]) -> None:
    extra = "--lora_r 3 --lora_target_modules v_proj,q_proj --train_connectors True --train_diffusion_head True"
    arguments, start = taking_over(line(base, made["lora"], extra))
    plan = plan_of(arguments, start)
    assert (plan.lora_r, plan.head, plan.train_connectors) == (3, "full", True)
    without, _ = taking_over(line(base, made["head"]))
    assert without.model.target_modules == (), "an adapter without LoRA on the language model gets none unasked"


def test_an_adapter_of_another_base_is_refused(base: Path, made: dict[str, Path]) -> None:
    _, start = taking_over(line(base, made["lora"]))
    assert isinstance(start, StartAdapter)
    checkpoint = open_base_model(str(base))
    start.check_base(checkpoint, model_fingerprint(checkpoint))
    with pytest.raises(AdapterError, match=r"was made on another base model \(some/VibeVoice, .* has abc\)"):
        start.check_base(checkpoint, "abc")


def test_pissa_and_an_adapter_exclude_each_other(base: Path, made: dict[str, Path]) -> None:
    with pytest.raises(ArgumentError, match="--init_lora_weights pissa and --adapter_name_or_path exclude each other"):
        line(base, made["lora"], "--init_lora_weights pissa")
