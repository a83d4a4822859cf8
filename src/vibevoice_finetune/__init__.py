"""Fine-tune VibeVoice text-to-speech models: what you train is what you hear.

The commands are functions here: `prepare`, `validate`, `train`, `generate`, `evaluate`, `merge`. Each takes a dataclass
that says what is wanted and returns one that says what came of it; the command line calls the same functions. A mistake
is a `UserError`, whose text is one line that says what to do.

Names are imported when they are first asked for: torch and transformers take seconds.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vibevoice_finetune.arguments import Arguments as Arguments
    from vibevoice_finetune.arguments import make_arguments as make_arguments
    from vibevoice_finetune.errors import UserError as UserError
    from vibevoice_finetune.evaluation.evaluate import EvaluationRequest as EvaluationRequest
    from vibevoice_finetune.evaluation.evaluate import evaluate as evaluate
    from vibevoice_finetune.evaluation.speak import Voice as Voice
    from vibevoice_finetune.export.merge import ExportRequest as MergeRequest
    from vibevoice_finetune.export.merge import export as merge
    from vibevoice_finetune.generation.generate import GenerationRequest as GenerationRequest
    from vibevoice_finetune.generation.generate import ModelSource as ModelSource
    from vibevoice_finetune.generation.generate import generate as generate
    from vibevoice_finetune.generation.scripts import script_from_text as script_from_text
    from vibevoice_finetune.preparation.run import PrepareRequest as PrepareRequest
    from vibevoice_finetune.preparation.run import prepare as prepare
    from vibevoice_finetune.training.run import train as train
    from vibevoice_finetune.validation.read import read_file as read_rows
    from vibevoice_finetune.validation.validate import Options as ValidationOptions
    from vibevoice_finetune.validation.validate import validate as validate

_HOMES = {
    "Arguments": "arguments:Arguments",
    "EvaluationRequest": "evaluation.evaluate:EvaluationRequest",
    "GenerationRequest": "generation.generate:GenerationRequest",
    "MergeRequest": "export.merge:ExportRequest",
    "ModelSource": "generation.generate:ModelSource",
    "PrepareRequest": "preparation.run:PrepareRequest",
    "UserError": "errors:UserError",
    "ValidationOptions": "validation.validate:Options",
    "Voice": "evaluation.speak:Voice",
    "evaluate": "evaluation.evaluate:evaluate",
    "generate": "generation.generate:generate",
    "make_arguments": "arguments:make_arguments",
    "merge": "export.merge:export",
    "prepare": "preparation.run:prepare",
    "read_rows": "validation.read:read_file",
    "script_from_text": "generation.scripts:script_from_text",
    "train": "training.run:train",
    "validate": "validation.validate:validate",
}
"""Where each name lives: module and attribute."""

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  # all of them are strings


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = resolve_name(f"{__name__}.{_HOMES[name]}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
