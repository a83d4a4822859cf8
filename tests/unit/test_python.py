"""The package as Python sees it: the commands as functions, each imported when it is asked for."""

import subprocess
import sys
from dataclasses import is_dataclass
from inspect import signature
from pathlib import Path

import pytest

import vibevoice_finetune as package
from vibevoice_finetune.demo.demo import VOICE


@pytest.mark.parametrize("name", package.__all__)
def test_every_name_that_is_promised_is_there(name: str) -> None:
    assert getattr(package, name) is not None
    assert name in dir(package)


def test_the_six_commands_are_functions_from_dataclass_to_dataclass() -> None:
    for name in ("prepare", "validate", "train", "generate", "evaluate", "merge"):
        function = getattr(package, name)
        assert callable(function)
        shape = signature(function, eval_str=True)
        assert is_dataclass(next(iter(shape.parameters.values())).annotation), name
        assert is_dataclass(shape.return_annotation), name
        assert function.__doc__


def test_they_are_functions_whatever_was_imported_before() -> None:
    """A room of the same name would take a function's place once it is imported."""
    code = (
        "import pkgutil, vibevoice_finetune as package\n"
        "rooms = {module.name for module in pkgutil.iter_modules(package.__path__)}\n"
        "print(sorted(rooms & set(package.__all__)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, vibevoice_finetune; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'finetune'"):
        _ = package.finetune


def test_from_rows_to_an_adapter_and_a_whole_model(tmp_path: Path) -> None:
    rows = package.read_rows(VOICE / "train.jsonl")
    found = package.validate(rows)
    assert found.num_rows == 40
    assert [finding.message for finding in found.findings] == []
    arguments = package.make_arguments(
        {
            "model_name_or_path": "small",
            "train_jsonl": [str(VOICE / "eval.jsonl")],
            "output_dir": str(tmp_path / "out"),
            "do_train": True,
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "use_cpu": True,
        }
    )
    trained = package.train(arguments)
    assert trained.result == tmp_path / "out" / "lora"
    assert (trained.steps, trained.best, trained.evaluation) == (1, None, {})
    merged = package.merge(package.MergeRequest("small", tmp_path / "merged", adapter=trained.result))
    assert merged.num_merged > 0
    with pytest.raises(package.UserError, match="nowhere"):
        package.generate(package.GenerationRequest(package.ModelSource("nowhere"), (package.script_from_text("A"),)))
