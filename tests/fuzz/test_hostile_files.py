"""Files of strangers: whatever is in them, there is a result or a message; what a longer run does, in short."""

import json
import random
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import make_targets, run
from tests.long.fuzz import mutate
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.data.jsonl import Columns
from vibevoice_finetune.data.rows import make_row
from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.errors import UserError

NAMES = (
    *("jsonl", "script", "scripts", "config", "audio", "marker", "shard", "adapter adapter_config.json"),
    *("adapter adapter_model.safetensors", "adapter diffusion_head/diffusion_head_full.bin"),
    *("adapter diffusion_head_lora/lora_config.json", "adapter diffusion_head_lora/lora.safetensors"),
    "adapter vibevoice_finetune.json",
)
SLOW_FILES = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return make_targets(tmp_path_factory.mktemp("hostile"))


def test_every_target_is_tried(targets):
    assert set(targets) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_seeds_are_accepted_and_their_mutations_never_break_it(targets, name):
    target = targets[name]
    assert all(run(target, seed) for seed in target.seeds)
    rng = random.Random(name)
    results = [run(target, mutate(rng.choice(target.seeds), target.seeds, rng)) for _ in range(40)]
    assert not all(results) or name in ("marker", "shard", "script"), "nothing is ever refused"


@settings(max_examples=60, **SLOW_FILES)
@given(st.binary(max_size=200))
@pytest.mark.parametrize("name", ["jsonl", "scripts", "audio", "marker", "adapter adapter_config.json"])
def test_any_bytes(targets, name, data):
    run(targets[name], data)


@settings(max_examples=60, **SLOW_FILES)
@given(st.dictionaries(st.sampled_from(["text", "audio", "voice_prompts", "speaker", "other"]), json_values))
def test_any_values_make_a_row_or_a_message(values):
    try:
        row = make_row(values, Columns(), None, "rows:1")
    except UserError as error:
        said, text = str(error), ""
    else:
        said, text = "", row.text
    assert said.startswith("rows:1") or text.strip()


@settings(max_examples=60, **SLOW_FILES)
@given(st.lists(json_values, max_size=3))
def test_any_json_lines(targets, values):
    run(targets["jsonl"], "\n".join(json.dumps(value) for value in values).encode())


@settings(max_examples=60, **SLOW_FILES)
@given(json_values)
def test_any_json_is_a_script_or_a_message(targets, value):
    run(targets["scripts"], json.dumps(value).encode())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.text(string.ascii_letters + " :,.é中", min_size=1).filter(str.strip)),
        min_size=1,
    )
)
def test_a_script_keeps_its_turns(turns):
    text = "\n".join(f"Speaker {number}: {words}" for number, words in turns)
    found = parse_script(text, "here")
    order = sorted({number for number, _ in turns})
    assert [(order[turn.speaker], turn.text) for turn in found] == [(number, words.strip()) for number, words in turns]


@settings(max_examples=25, **SLOW_FILES)
@given(
    st.dictionaries(st.sampled_from(["learning_rate", "bf16", "lora_r", "seed", "optim", "x y", "config"]), json_values)
)
def test_any_yaml_values_are_flags_or_a_message(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    words = ["--train_jsonl", "x.jsonl", "--model_name_or_path", "m", "--output_dir", str(path.parent / "out")]
    try:
        parse(["--config", str(path), *words, "--use_cpu", "True", "--report_to", "none"])
    except UserError as error:
        said = str(error)
    else:
        said = "a result"
    assert said


def test_a_pickle_that_runs_code_is_refused(targets, tmp_path):
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    import pickle

    import torch

    torch.save({"cond_proj.weight": Evil()}, tmp_path / "evil.bin")
    for data in ((tmp_path / "evil.bin").read_bytes(), pickle.dumps(Evil())):
        assert not run(targets["adapter diffusion_head/diffusion_head_full.bin"], data)
    assert not run(targets["config"], f"!!python/object/apply:builtins.open ['{witness}', 'w']".encode())
    assert not witness.exists()


def test_a_header_that_promises_ten_hours_allocates_nothing_like_it(targets):
    import struct
    import tracemalloc

    rate, seconds = 24_000, 36_000
    size = rate * seconds * 2
    riff = (
        b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    )
    tracemalloc.start()
    run(targets["audio"], riff + b"data" + struct.pack("<I", size) + b"\x01\x00" * 500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000_000
