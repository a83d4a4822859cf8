"""Folders that people have, each with broken twins; nothing of an adapter is dropped in silence."""

import json
import pickle
import re
import socket
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.unit.small_model import INFO, largest_difference, outputs, plan, small_model, train_at_random
from vibevoice_finetune.adapters.apply import AppliedSummary, adapter_deltas, load_adapter
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, merge
from vibevoice_finetune.adapters.check import open_for
from vibevoice_finetune.adapters.lora import has_lora
from vibevoice_finetune.adapters.read import holds_adapter
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.errors import AdapterError, ArgumentError

Outputs = dict[str, Tensor]
Shape = Callable[[Path], Path]  # turns this package's folder into another shape; returns what to load

FULL = plan(head="full", train_connectors=True)
HEAD_LORA = plan(head="lora", train_connectors=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Outputs]]:
    """One adapter with a full head and one with LoRA on it, and what the models that they came from compute."""
    result = {}
    for name, case in (("full", FULL), ("lora", HEAD_LORA)):
        torch.manual_seed(5)
        model = small_model()
        attach(model, case)
        train_at_random(model)
        folder = tmp_path_factory.mktemp(name) / "lora"
        save_adapter(model, case, folder, INFO)
        result[name] = (folder, outputs(model))
    return result


def copy(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def keep(folder: Path, *kept: str) -> None:
    """Delete all files but these."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in kept:
            path.unlink()


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a file of either kind."""
    if path.suffix == ".safetensors":
        save_file(change(load_file(path)), path)
    else:
        torch.save(change(torch.load(path, weights_only=True)), path)


# The shapes. Each starts from a copy of this package's folder with a full head ("full") or LoRA on it ("lora").

LANGUAGE_MODEL = ("adapter_config.json", "adapter_model.safetensors")
CONNECTORS = tuple(
    f"{connector}/{file}"
    for connector in ("acoustic_connector", "semantic_connector")
    for file in ("model.safetensors", "pytorch_model.bin")
)
BIN_CONNECTORS = tuple(name for name in CONNECTORS if name.endswith(".bin"))


def ours(folder: Path) -> Path:
    return folder


def our_checkpoint(folder: Path) -> Path:
    checkpoint = folder.parent / "checkpoint-20"
    checkpoint.mkdir()
    folder.rename(checkpoint / "lora")
    torch.save({"state": {}}, checkpoint / "optimizer.pt")
    save_file({"x": torch.ones(1)}, checkpoint / "trainable.safetensors")
    return checkpoint


def community(folder: Path) -> Path:
    """What the community's trainer leaves in a run's output folder: full copies of everything, twice."""
    keep(folder, *LANGUAGE_MODEL, *BIN_CONNECTORS, "diffusion_head/config.json", "diffusion_head/model.safetensors",
         "diffusion_head/diffusion_head_full.bin")  # fmt: skip
    (folder / "diffusion_head_full.bin").write_bytes((folder / "diffusion_head/diffusion_head_full.bin").read_bytes())
    edit_json(folder / "adapter_config.json", task_type="CAUSAL_LM")
    (folder.parent / "README.md").write_text("")
    return folder.parent


def flat_with_trainer_state(folder: Path) -> Path:
    keep(folder, *LANGUAGE_MODEL, *BIN_CONNECTORS, "diffusion_head/diffusion_head_full.bin")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state.pth"):
        torch.save(object, folder / name)
    return folder


def head_in_the_root(folder: Path) -> Path:
    (folder / "diffusion_head/diffusion_head_full.bin").rename(folder / "diffusion_head_full.bin")
    keep(folder, *LANGUAGE_MODEL, *BIN_CONNECTORS, "diffusion_head_full.bin")
    return folder


def head_as_safetensors(folder: Path) -> Path:
    keep(folder, *LANGUAGE_MODEL, *CONNECTORS, "diffusion_head/model.safetensors")
    return folder


def lora_as_bin(folder: Path) -> Path:
    keep(folder, *LANGUAGE_MODEL, *BIN_CONNECTORS, "diffusion_head/diffusion_head_full.bin")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    return folder


def whole_model_wrapped(folder: Path) -> Path:
    """PEFT put around the whole model instead of its language model; targets as a pattern."""
    keep(folder, *LANGUAGE_MODEL, *BIN_CONNECTORS, "diffusion_head/model.safetensors")
    rewrite(
        folder / "adapter_model.safetensors",
        lambda tensors: {
            name.replace("base_model.model.", "base_model.model.model.language_model."): tensor
            for name, tensor in tensors.items()
        },
    )
    edit_json(folder / "adapter_config.json", target_modules=r".*language_model.*\.(q_proj|down_proj)")
    return folder


def renamed_head_lora(folder: Path) -> None:
    """The community trainer wraps the head in a module that calls it `base`."""
    (folder / "diffusion_head_lora/lora.safetensors").rename(folder / "diffusion_head/adapter_model.safetensors")
    (folder / "diffusion_head_lora/lora_config.json").rename(folder / "diffusion_head/adapter_config.json")
    rewrite(
        folder / "diffusion_head/adapter_model.safetensors",
        lambda tensors: {name.replace("base_model.model.", "base_model.model.base."): t for name, t in tensors.items()},
    )


HEAD_PEFT = ("diffusion_head/adapter_config.json", "diffusion_head/adapter_model.safetensors")


def peft_head(folder: Path) -> Path:
    renamed_head_lora(folder)
    keep(folder, *LANGUAGE_MODEL, *BIN_CONNECTORS, *HEAD_PEFT)
    return folder


def peft_head_with_its_state_dict(folder: Path) -> Path:
    """`diffusion_head_full.bin` of a head that was wrapped: the base's weights under PEFT's names, and LoRA again."""
    renamed_head_lora(folder)
    lora = load_file(folder / "diffusion_head/adapter_model.safetensors")
    state = {name.replace(".weight", ".default.weight"): tensor for name, tensor in lora.items()}
    untrained = small_model()
    head_only = plan(lora_target_modules=(), head="full")
    attach(untrained, head_only)
    save_adapter(untrained, head_only, folder.parent / "base", INFO)
    for name, tensor in load_file(folder.parent / "base/diffusion_head/model.safetensors").items():
        wrapped = f"base_model.model.base.{name}"
        if f"{wrapped.removesuffix('.weight')}.lora_A.weight" in lora:
            wrapped = wrapped.replace(".weight", ".base_layer.weight")
        state[wrapped] = tensor
    torch.save(state, folder / "diffusion_head_full.bin")
    keep(folder, *LANGUAGE_MODEL, *BIN_CONNECTORS, *HEAD_PEFT, "diffusion_head_full.bin")
    return folder


SHAPES: dict[str, tuple[str, Shape]] = {
    "ours": ("full", ours),
    "ours, head by LoRA": ("lora", ours),
    "our checkpoint": ("full", our_checkpoint),
    "community": ("full", community),
    "flat, with the trainer's state": ("full", flat_with_trainer_state),
    "head in the root": ("full", head_in_the_root),
    "head as safetensors": ("full", head_as_safetensors),
    "LoRA as .bin": ("full", lora_as_bin),
    "PEFT around the whole model": ("full", whole_model_wrapped),
    "PEFT adapter of the head": ("lora", peft_head),
    "PEFT head with its state dict": ("lora", peft_head_with_its_state_dict),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)


def root_of(folder: Path) -> Path:
    return folder / "lora" if (folder / "lora").is_dir() else folder


@cache
def base_shapes() -> dict[str, tuple[int, ...]]:
    return parts.tensor_shapes(parts.config(small_model()))


def make(made: dict[str, tuple[Path, Outputs]], shape: str, where: Path) -> tuple[Path, Outputs]:
    source, change = SHAPES[shape]
    folder, expected = made[source]
    return change(copy(folder, where / "run" / "lora")), expected


@each_shape
def test_every_shape_is_applied_whole(shape: str, made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    folder, expected = make(made, shape, tmp_path)
    model = small_model()
    summary = load_adapter(model, folder, base_fingerprint="abc")
    assert largest_difference(outputs(model), expected) == 0.0
    assert summary.warnings == ()
    assert [block.title for block in summary.blocks] == [
        "language model",
        "diffusion head",
        "acoustic connector",
        "semantic connector",
    ]
    assert [block.num_tensors for block in summary.blocks if "connector" in block.title] == [5, 5]
    assert summary.blocks[0].num_tensors == 8  # two layers, two targets, A and B
    is_ours = shape.startswith("our")
    assert summary.base_matches is (True if is_ours else None)
    assert summary.expects_voice_prompt is (True if is_ours else None)


@each_shape
def test_every_shape_in_bf16(shape: str, made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    """Tensors stored in bf16 are read as well as float32 ones."""
    folder, expected = make(made, shape, tmp_path)
    root = root_of(folder)
    for path in [*root.rglob("*.safetensors"), *root.rglob("*.bin")]:
        if path.name != "training_args.bin":
            rewrite(path, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    (root / "vibevoice_finetune.json").unlink(missing_ok=True)  # its checksums are of the float32 files
    model = small_model()
    load_adapter(model, folder)
    for name, value in outputs(model).items():
        assert (value - expected[name]).norm() < 0.05 * expected[name].norm()


# What breaks a folder. Each takes the file it is about; the message must name the file, and the tensor where one is
# to blame.


def victims(root: Path) -> list[Path]:
    """The files with tensors that are read, not their second forms."""
    preferred = []
    for group in (
        ("adapter_model.safetensors", "adapter_model.bin"),
        ("diffusion_head_lora/lora.safetensors", "diffusion_head/adapter_model.safetensors"),
        ("diffusion_head/model.safetensors", "diffusion_head/diffusion_head_full.bin", "diffusion_head_full.bin"),
        ("acoustic_connector/model.safetensors", "acoustic_connector/pytorch_model.bin"),
    ):
        preferred += [next((root / name for name in group if (root / name).exists()), None)]
    return [path for path in preferred if path is not None]


def some_tensor(path: Path) -> str:
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return sorted(tensors)[len(tensors) // 2]


def missing_tensor(path: Path) -> str:
    name = some_tensor(path)
    rewrite(path, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    return name.replace(".base_layer", "").removeprefix("base_model.model.base.")


def wrong_shape(path: Path) -> str:
    name = some_tensor(path)
    rewrite(path, lambda tensors: tensors | {name: torch.cat([tensors[name], tensors[name]])})
    return name


def not_finite(path: Path) -> str:
    name = some_tensor(path)

    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = float("nan")
        return tensors

    rewrite(path, spoil)
    return name


def left_over(path: Path) -> str:
    rewrite(path, lambda tensors: tensors | {"layers.9.other.weight": torch.ones(2, 2)})
    return "layers.9.other.weight"


def truncated(path: Path) -> str:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 40])
    return "cut off within tensor" if path.suffix == ".safetensors" else "no tensor"


def no_state_dict(path: Path) -> str:
    if path.suffix == ".safetensors":
        path.write_bytes(b"not a safetensors file at all")
        return "is not a safetensors file"
    path.write_bytes(pickle.dumps({"weight": [1, 2, 3]}))
    return "no tensor"


def a_list(path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file({}, path)
        return "holds no tensors"
    torch.save([torch.ones(2)], path)
    return "found a list"


BREAKS = [missing_tensor, wrong_shape, not_finite, left_over, truncated, no_state_dict, a_list]


@pytest.mark.parametrize("damage", BREAKS, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("shape", ["ours, head by LoRA", "LoRA as .bin"])  # a file of each kind and place
def test_a_broken_twin_is_refused_with_file_and_tensor(
    shape: str, damage: Callable[[Path], str], made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, _ = make(made, shape, tmp_path)
    root = root_of(folder)
    for path in victims(root):
        good = path.read_bytes()
        tensor = damage(path)
        with pytest.raises(AdapterError) as caught:
            open_for(base_shapes(), folder)
        assert path.relative_to(root).as_posix() in str(caught.value)
        assert tensor in str(caught.value)
        path.write_bytes(good)
    open_for(base_shapes(), folder)  # whole again, it is read


@each_shape
def test_a_failed_load_leaves_the_model_as_it_was(
    shape: str, made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, _ = make(made, shape, tmp_path)
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    not_finite(victims(root_of(folder))[-1])  # the last tensor that is looked at is bad
    with pytest.raises(AdapterError, match="not finite"):
        load_adapter(model, folder)
    assert not has_lora(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@each_shape
def test_an_adapter_of_another_size_names_its_base(
    shape: str, made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, _ = make(made, shape, tmp_path)
    model = small_model(hidden=32)
    with pytest.raises(
        AdapterError, match=r"tensor base_model\.model\..* has shape .*another model \(some/VibeVoice\)"
    ):
        load_adapter(model, folder)
    assert not has_lora(model)


@pytest.mark.parametrize(("layers", "message"), [(3, "layers.2.*is missing"), (1, "layers.1.*the base model has no")])
def test_an_adapter_of_another_depth(
    layers: int, message: str, made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, _ = make(made, "ours", tmp_path)
    with pytest.raises(AdapterError, match=message):
        load_adapter(small_model(layers=layers), folder)


def load_changed(
    made: dict[str, tuple[Path, Outputs]], where: Path, shape: str, change: Callable[[Path], object]
) -> AppliedSummary:
    folder, _ = make(made, shape, where)
    change(folder)
    return load_adapter(small_model(), folder)


@pytest.mark.parametrize(
    ("shape", "change", "message"),
    [
        ("ours", lambda f: (f / "adapter_config.json").unlink(), r"adapter_config.json: is missing beside"),
        ("ours", lambda f: (f / "adapter_model.safetensors").unlink(), r"adapter_model.safetensors: is missing beside"),
        (
            "head as safetensors",
            lambda f: torch.save({}, f / "diffusion_head_ema.bin"),
            r"diffusion_head_ema.bin: is not a known part of an adapter.* no effect",
        ),
        (
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", lora_bias=True),
            r"adapter_config.json: lora_bias is True",
        ),
        (
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", init_lora_weights="pissa"),
            r"init_lora_weights is 'pissa'",
        ),
        (
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", peft_type="LOHA"),
            r"peft_type is 'LOHA'",
        ),
        (
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", target_modules=["q_proj"]),
            r"tensor base_model.model.layers.\d.mlp.down_proj.lora_A.weight: .* does not name its module",
        ),
        (
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", target_modules=["q_proj", "down_proj", "k_proj"]),
            r"tensor base_model.model.layers.0.self_attn.k_proj.lora_A.weight is missing",
        ),
        (
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", r=4),
            r"lora_A.weight has shape \(2, \d+\); .* the rank 4",
        ),
        ("head as safetensors", lambda f: edit_json(f / "adapter_config.json", r="8"), "r is '8'"),
        ("head as safetensors", lambda f: edit_json(f / "adapter_config.json", lora_alpha=None), "lora_alpha is None"),
        (
            "head as safetensors",
            lambda f: (f / "adapter_config.json").write_text("{"),
            "adapter_config.json: is not JSON",
        ),
        ("head as safetensors", lambda f: (f / "adapter_config.json").write_text("[]"), "holds a JSON list"),
        (  # takes time exponential in the length of the name
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", target_modules=r"(?:(?:.|\w)+)*s"),
            "regular expression",
        ),
        (  # the same, in pieces each of which is fast enough
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", rank_pattern={r"(?:(?:.|\w)(?:.|\w)?)*s": 1}),
            "regular expression",
        ),
        (  # takes memory and time before it is matched
            "head as safetensors",
            lambda f: edit_json(f / "adapter_config.json", alpha_pattern={"((((a{100}){100}){100}){100})*": 1}),
            r"is neither the name of a module nor a simple regular expression",
        ),
        ("ours", lambda f: edit_json(f / "vibevoice_finetune.json", format_version=2), "format_version is 2"),
        (
            "ours",
            lambda f: edit_json(
                f / "vibevoice_finetune.json", contents={"../../secret": {"sha256": "", "size_bytes": 0}}
            ),
            "which lies outside the folder",
        ),
        ("ours", lambda f: edit_json(f / "vibevoice_finetune.json", contents=[]), r"contents is \[\]; expected dict"),
        (
            "ours",
            lambda f: edit_json(f / "vibevoice_finetune.json", contents={}),
            "acoustic_connector/model.safetensors: is not recorded in vibevoice_finetune.json",
        ),
    ],
)
def test_what_else_is_refused(
    shape: str,
    change: Callable[[Path], object],
    message: str,
    made: dict[str, tuple[Path, Outputs]],
    tmp_path: Path,
) -> None:
    with pytest.raises(AdapterError, match=message):
        load_changed(made, tmp_path, shape, change)


def test_a_changed_value_is_found_by_its_checksum(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    def flip_last_bit(folder: Path) -> None:
        path = folder / "acoustic_connector/model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    with pytest.raises(AdapterError, match=r"acoustic_connector/model.safetensors: is not what was written"):
        load_changed(made, tmp_path, "ours", flip_last_bit)


def test_a_part_that_was_written_must_be_there(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    def remove_connector(folder: Path) -> None:
        for path in (folder / "acoustic_connector").iterdir():
            path.unlink()

    with pytest.raises(AdapterError, match=r"acoustic_connector/model.safetensors: is missing"):
        load_changed(made, tmp_path, "ours", remove_connector)
    # One of its two files is enough, and a merged head replaces the LoRA of the head.
    kept = load_changed(
        made, tmp_path / "b", "ours", lambda folder: (folder / "acoustic_connector/model.safetensors").unlink()
    )
    assert kept.blocks[2].files[0].name == "pytorch_model.bin"


def test_links_out_of_the_folder_are_not_followed(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    def link_out(folder: Path) -> None:
        (tmp_path / "elsewhere.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")

    with pytest.raises(AdapterError, match=r"adapter_model.safetensors: is a link that leads out of its folder"):
        load_changed(made, tmp_path, "head as safetensors", link_out)


def test_a_snapshot_of_the_hub_is_links_and_loads(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    folder, expected = made["full"]
    repository = tmp_path / "models--some--adapter"
    snapshot = repository / "snapshots" / "0123"
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = repository / "blobs" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    model = small_model()
    load_adapter(model, snapshot)
    assert largest_difference(outputs(model), expected) == 0.0


def test_a_pickle_runs_nothing(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "sprung"),))  # type: ignore[return-value]

    with pytest.raises(AdapterError, match=r"diffusion_head_full.bin: holds no tensor .* nothing in it was executed"):
        load_changed(
            made,
            tmp_path,
            "head in the root",
            lambda folder: torch.save({"cond_proj.weight": Trap()}, folder / "diffusion_head_full.bin"),
        )
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("what", ["nothing", "empty", "file", "two", "nearby"])
def test_where_there_is_no_adapter_the_message_helps(
    what: str, made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    messages = {
        "nothing": "does not exist; give the folder",
        "empty": "holds no adapter: expected adapter_config.json",
        "file": "is a file; give the folder",
        "two": "there is an adapter in it and another in",
        "nearby": r"did you mean .*checkpoint-30/lora\?",
    }
    if what == "file":
        folder.write_text("")
    elif what != "nothing":
        folder.mkdir()
    if what == "two":
        copy(made["full"][0], folder)
        copy(made["full"][0], folder / "lora")
    if what == "nearby":
        copy(made["full"][0], folder / "checkpoint-30/lora")
    with pytest.raises(AdapterError, match=messages[what]):
        load_adapter(small_model(), folder)


# How much of an adapter is applied


@pytest.mark.parametrize("source", ["full", "lora"])
def test_scale_0_is_the_base_bit_for_bit_and_1_the_trained_model(
    source: str, made: dict[str, tuple[Path, Outputs]]
) -> None:
    folder, expected = made[source]
    base = small_model()
    none, all_of_it = small_model(), small_model()
    summary = load_adapter(none, folder, scale=0.0)
    assert [block.changes_base for block in summary.blocks] == [True] * 4
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in none.state_dict().items())
    assert largest_difference(outputs(none), outputs(base)) == 0.0
    load_adapter(all_of_it, folder, scale=1.0)
    assert largest_difference(outputs(all_of_it), expected) == 0.0


@pytest.mark.parametrize("scale", [0.5, -1.0, 2.0])
@pytest.mark.parametrize("source", ["full", "lora"])
def test_scale_goes_straight_from_base_to_trained(
    source: str, scale: float, made: dict[str, tuple[Path, Outputs]]
) -> None:
    folder, _ = made[source]
    weights = {}
    for at in (0.0, scale, 1.0):
        model = small_model()
        load_adapter(model, folder, scale=at)
        merge(model)
        weights[at] = model.state_dict()
    for name, base in weights[0.0].items():
        expected = base + scale * (weights[1.0][name] - base)
        torch.testing.assert_close(weights[scale][name], expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(
        weights[scale]["model.language_model.layers.0.self_attn.q_proj.weight"],
        weights[1.0]["model.language_model.layers.0.self_attn.q_proj.weight"],
    )


def test_scale_must_be_a_number(made: dict[str, tuple[Path, Outputs]]) -> None:
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="--adapter_scale"):
            load_adapter(small_model(), made["full"][0], scale=scale)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 0.3), (torch.bfloat16, 1.0)], ids=["float32", "bf16"])
@pytest.mark.parametrize(
    "shape", ["ours", "ours, head by LoRA", "PEFT adapter of the head", "PEFT head with its state dict"]
)
def test_deltas_give_bit_for_bit_what_loading_and_merging_gives(
    shape: str, scale: float, dtype: torch.dtype, made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, _ = make(made, shape, tmp_path)
    base, merged = small_model(dtype=dtype), small_model(dtype=dtype)
    load_adapter(merged, folder, scale=scale)
    merge(merged)
    shapes = base_shapes()
    deltas = adapter_deltas(folder, shapes, scale=scale)
    assert set(deltas) <= set(shapes)
    found = base.state_dict()
    for name, delta in deltas.items():
        old = found[name].clone()
        found[name] = delta(found[name])
        assert torch.equal(old, base.state_dict()[name]), "the base tensor is not written to"
    for name, value in merged.state_dict().items():
        assert found[name].dtype is value.dtype
        assert torch.equal(found[name], value), name
    changed = {name for name, value in base.state_dict().items() if not torch.equal(value, merged.state_dict()[name])}
    assert changed <= set(deltas)
    assert len(deltas) - len(changed) in (0, 2)  # a PEFT head's state dict repeats two untrained norms


def test_deltas_at_scale_0_are_none_but_the_folder_is_checked(
    made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, _ = make(made, "ours", tmp_path)
    assert adapter_deltas(folder, base_shapes(), scale=0.0) == {}
    truncated(folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="cut off"):
        adapter_deltas(folder, base_shapes(), scale=0.0)


# Ranks and scales by pattern


def test_rank_and_alpha_patterns_and_rank_stabilised_scale(
    made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    import peft

    qwen = parts.language_model(small_model())
    wrapped = peft.get_peft_model(
        qwen,
        peft.LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=["q_proj", "down_proj"],
            rank_pattern={"layers.1.mlp.down_proj": 5},
            alpha_pattern={r".*\.0\..*q_proj": 7},
            use_rslora=True,
        ),
    )
    train_at_random(wrapped)
    wrapped.eval()
    wrapped.save_pretrained(str(tmp_path))
    model = small_model()
    summary = load_adapter(model, tmp_path)
    assert summary.blocks[0].form == "LoRA of rank 2, 5"
    embeds_BTD = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = wrapped(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
        found = parts.language_model(model)(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# What the summary says


def test_base_fingerprints(made: dict[str, tuple[Path, Outputs]]) -> None:
    folder, _ = made["full"]
    assert load_adapter(small_model(), folder).base_matches is None
    summary = load_adapter(small_model(), folder, base_fingerprint="other")
    assert summary.base_matches is False
    (warning,) = summary.warnings
    assert "was made on another base model (some/VibeVoice, fingerprint abc; the model loaded has other)" in warning
    model = small_model()
    with pytest.raises(AdapterError, match="made on another base model"):
        load_adapter(model, folder, base_fingerprint="other", strict=True)
    assert not has_lora(model)


def save_untrained(case: AdapterPlan, folder: Path) -> None:
    model = small_model()
    attach(model, case)
    save_adapter(model, case, folder, INFO)


def test_untrained_parts_are_said(tmp_path: Path) -> None:
    save_untrained(FULL, tmp_path)
    summary = load_adapter(small_model(), tmp_path)
    assert [block.changes_base for block in summary.blocks] == [False] * 4
    assert summary.warnings == (f"{tmp_path}: changes nothing: every part of it equals the base model",)
    assert all("untrained" in line for line in summary.lines()[1:])


def test_the_lines_for_people(made: dict[str, tuple[Path, Outputs]]) -> None:
    folder, _ = made["lora"]
    summary = load_adapter(small_model(), folder, base_fingerprint="abc")
    assert summary.lines()[0] == f"adapter {folder} at scale 1; base model: matches"
    # q_proj: 2·16 + 16·2 = 64, down_proj: 2·24 + 16·2 = 80, two layers
    assert summary.lines()[1] == (
        "  language model: LoRA of rank 2, 8 tensors, 288 parameters from adapter_model.safetensors"
    )
    assert summary.lines()[2].endswith("from diffusion_head_lora/lora.safetensors")
    assert set(summary.unread) == {
        "acoustic_connector/pytorch_model.bin",
        "semantic_connector/pytorch_model.bin",
        "diffusion_head/diffusion_head_full.bin",
    }


def test_a_foreign_head_in_both_forms_is_said(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    folder = copy(made["lora"][0], tmp_path)
    (folder / "vibevoice_finetune.json").unlink()
    summary = load_adapter(small_model(), folder)
    (warning,) = summary.warnings
    assert "holds the diffusion head as LoRA and in full; the LoRA is applied" in warning


def test_a_model_takes_one_adapter(made: dict[str, tuple[Path, Outputs]]) -> None:
    folder, _ = made["full"]
    model: nn.Module = small_model()
    load_adapter(model, folder)
    with pytest.raises(AdapterError, match="has an adapter already; merge it first"):
        load_adapter(model, folder)


def test_a_stale_copy_of_the_heads_lora_is_refused(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    folder, _ = make(made, "PEFT head with its state dict", tmp_path)
    rewrite(
        folder / "diffusion_head_full.bin",
        lambda tensors: {name: tensor + ("lora_B" in name) for name, tensor in tensors.items()},
    )
    with pytest.raises(AdapterError, match=r"diffusion_head_full.bin: tensor .*lora_B.* has other values than"):
        load_adapter(small_model(), folder)


def test_lora_of_the_head_without_its_scale_is_refused(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    folder, _ = make(made, "PEFT head with its state dict", tmp_path)
    for name in HEAD_PEFT:
        (folder / name).unlink()
    with pytest.raises(AdapterError, match=re.escape("its scale is not known")):
        load_adapter(small_model(), folder)


# What wrappers add to names


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("layers.", "_orig_mod.layers."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.removeprefix("base_model.model."),
    ],
    ids=["compiled inside", "DDP", "compiled and DDP", "wrapped twice", "no PEFT"],
)
def test_names_of_wrappers_are_read(
    rename: Callable[[str], str], made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, expected = make(made, "head as safetensors", tmp_path)
    for path in [folder / "adapter_model.safetensors", folder / "diffusion_head/model.safetensors"]:
        rewrite(path, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    model = small_model()
    assert load_adapter(model, folder).warnings == ()
    assert largest_difference(outputs(model), expected) == 0.0


def test_one_matrix_under_two_names_is_refused(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    folder, _ = make(made, "head as safetensors", tmp_path)
    rewrite(
        folder / "diffusion_head/model.safetensors",
        lambda tensors: tensors | {"module.cond_proj.weight": tensors["cond_proj.weight"] + 1},
    )
    with pytest.raises(AdapterError, match="is there twice, the other time as"):
        load_adapter(small_model(), folder)


# The whole language model that older trainers leave beside a head


def with_language_model(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    keep(folder, "diffusion_head/model.safetensors", "diffusion_head/config.json")
    tensors = {name: tensor.clone() for name, tensor in parts.language_model(small_model()).state_dict().items()}
    save_file(change(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_an_untrained_language_model_beside_a_head_is_ignored_and_said(
    dtype: torch.dtype, made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder = with_language_model(
        copy(made["full"][0], tmp_path / "old"), lambda tensors: {name: t.to(dtype) for name, t in tensors.items()}
    )
    assert holds_adapter(folder)
    model = small_model()
    summary = load_adapter(model, folder)
    (warning,) = summary.warnings
    assert "model.safetensors is a copy of the base's language model, all 26 tensors; not used" in warning
    assert [block.title for block in summary.blocks] == ["diffusion head"]
    assert torch.equal(outputs(model)["diffusion head"], made["full"][1]["diffusion head"])
    assert torch.equal(outputs(model)["language model"], outputs(small_model())["language model"])


def test_a_trained_language_model_beside_a_head_is_refused(
    made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder = with_language_model(
        copy(made["full"][0], tmp_path / "old"),
        lambda tensors: tensors | {"layers.0.mlp.up_proj.weight": tensors["layers.0.mlp.up_proj.weight"] + 1},
    )
    model = small_model()
    with pytest.raises(AdapterError, match=r"1 of 26 tensors are not the base model's, layers\.0\.mlp\.up_proj"):
        load_adapter(model, folder)
    assert torch.equal(outputs(model)["diffusion head"], outputs(small_model())["diffusion head"])


# Hostile files: refused before they cost anything


def zeros_expanded(folder: Path) -> None:
    """64 GB when copied, a kilobyte on the disk."""
    torch.save({"cond_proj.weight": torch.zeros(1).expand(2**17, 2**17)}, folder / "diffusion_head_full.bin")


def a_million_names(folder: Path) -> None:
    entries = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(300_000)}
    header = json.dumps(entries).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def a_sparse_file(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.truncate(50 * 10**9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (zeros_expanded, "diffusion_head_full.bin: its tensors take 68,719,476,736 bytes.*they overlap"),
        (a_million_names, "adapter_model.safetensors: .*holds 300,000 tensors; an adapter has at most 10,000"),
        (a_sparse_file, "adapter_model.safetensors: has 50,000,000,000 bytes; a part of an adapter has at most"),
        (
            lambda f: torch.save({f"t{n}": torch.zeros(0) for n in range(11_000)}, f / "diffusion_head_full.bin"),
            "diffusion_head_full.bin: .*tensors",
        ),
        (
            lambda f: edit_json(f / "adapter_config.json", rank_pattern={f"layers.{n}.x": 2 for n in range(10_000)}),
            "rank_pattern has 10,000 entries; at most 500 are read",
        ),
        (
            lambda f: edit_json(f / "adapter_config.json", target_modules=".*" * 12 + "_projX"),
            "does not name its module",
        ),
    ],
)
def test_hostile_files_are_refused_within_seconds(
    change: Callable[[Path], object], message: str, made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, _ = make(made, "head in the root", tmp_path)
    change(folder)
    began = time.process_time()
    with pytest.raises(AdapterError, match=message):
        load_adapter(small_model(), folder)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "diffusion_head_full.bin"])
def test_what_is_not_a_float_is_refused(
    name: str, dtype: torch.dtype, made: dict[str, tuple[Path, Outputs]], tmp_path: Path
) -> None:
    folder, _ = make(made, "head in the root", tmp_path)
    rewrite(folder / name, lambda tensors: {key: tensor.to(dtype) for key, tensor in tensors.items()})
    with pytest.raises(AdapterError, match=f"{name}: tensor .* is stored as .*; expected float32, bfloat16 or float16"):
        load_adapter(small_model(), folder)


def test_names_from_a_file_are_printable(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    folder, _ = make(made, "head in the root", tmp_path)
    rewrite(
        folder / "adapter_model.safetensors",
        lambda tensors: tensors | {"\x1b[2J\nerror: \u202erun this": torch.zeros(1)},
    )
    with pytest.raises(AdapterError) as caught:
        load_adapter(small_model(), folder)
    assert str(caught.value).isprintable()


def test_an_interrupted_replacement_is_put_back(made: dict[str, tuple[Path, Outputs]], tmp_path: Path) -> None:
    folder, expected = make(made, "ours", tmp_path)
    host = re.sub(r"[^\w]", "", socket.gethostname())[:24]
    folder.rename(folder.with_name(f".lora.{host}-999999999-0123456789ab.replaced"))  # by a process that is gone
    model = small_model()
    load_adapter(model, folder)
    assert largest_difference(outputs(model), expected) == 0.0
