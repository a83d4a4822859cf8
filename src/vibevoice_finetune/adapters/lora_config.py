"""The rules that an `adapter_config.json` of PEFT lays down.

Why: PEFT, given a folder, adds what its configuration names and says nothing about tensors that are missing or left
over. Here PEFT's rules are applied to one module at a time, so that file and tensors can be compared; options that
change the mathematics and are not known here are refused by name.

In: the file. Out: which modules have LoRA, and with which rank and scale.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex  # type: ignore[import-untyped]  # transformers depends on it; unlike `re` it can give up in time
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from vibevoice_finetune.adapters.files import read_json
from vibevoice_finetune.errors import AdapterError, shown

# Options that make of LoRA something else than `W + scale * B A` (DoRA apart), or that change the base weights.
_NOT_PLAIN = (
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# Initialisations that leave the base weights as they are; the others (pissa, olora, corda, loftq) subtract from them.
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# PEFT matches with `re`, which cannot be stopped, so strangers' regular expressions are matched by `regex`, which can,
# and only plain names by PEFT's own functions. Patterns are matched against names of some forty characters, in
# microseconds: those that take this long together, over hundreds of names, are hostile. Names need no counted
# repetitions, which if nested are expanded before the clock runs, and no references or recursion.
_PATTERNS_SEC = 1.0
_PATTERN_CHARACTERS = 2000
_PATTERN = regex.compile(r"(?:[\w.\\()|*+^$\[\]-]|(?<!\()\?|\(\?[:!=])*")
_MAX_NAMES = 500  # LoRA on every linear layer of the 7B model is on 196 layers, of the head on 26
_MAX_RANK = 1_000_000
_MAX_ALPHA = 1e9

Names = tuple[str, ...] | str


@dataclass
class Clock:
    """Time that is left for the patterns of a file."""

    left_sec: float = _PATTERNS_SEC

    @contextmanager
    def running(self) -> Iterator[float]:
        """Yield what is left, in seconds, and take off what is used."""
        began = time.monotonic()
        try:
            yield max(self.left_sec, 1e-3)  # `regex` does not accept 0
        finally:
            self.left_sec -= time.monotonic() - began


@dataclass(frozen=True)
class LoraRules:
    """What an `adapter_config.json` says of the modules of one block, by the names that PEFT gave them.

    Attributes:
        where: the file.
        config: its lists of names, for PEFT's own functions.
        rank: r of modules that no pattern names.
        alpha: likewise.
        root_of_rank: whether the scale is alpha / sqrt(r).
        magnitudes: whether each row of a weight has a length of its own: DoRA.
        targets: the names of the modules, or one regular expression.
        excluded: likewise, of modules that have no LoRA.
        plain: whether nothing but `targets` decides.
        rank_pattern: names or patterns to ranks.
        alpha_pattern: likewise.
        base_model: the base model that the file names, as it may be printed.
    """

    where: Path
    config: LoraConfig
    rank: int
    alpha: float
    root_of_rank: bool
    magnitudes: bool
    targets: Names
    excluded: Names
    plain: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    base_model: str | None
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)

    def wants(self, module: str) -> bool:
        """Whether the module gets LoRA, by PEFT's rule."""
        if isinstance(self.excluded, str) and self._matches(self.excluded, module):
            return False
        if not isinstance(self.targets, str):
            return bool(check_target_module_exists(self.config, module))
        if not self._matches(self.targets, module):
            return False
        by_name = LoraConfig(target_modules=[module], exclude_modules=self.config.exclude_modules)
        return bool(check_target_module_exists(by_name, module))

    def rank_of(self, module: str) -> int:
        """Rank r of the module's two matrices."""
        return self.rank_pattern.get(self._pattern_for(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """Factor on B A: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
        alpha = self.alpha_pattern.get(self._pattern_for(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.root_of_rank else alpha / rank

    def _pattern_for(self, patterns: dict[str, Any], module: str) -> str:
        if all(map(_is_name, patterns)):
            return get_pattern_key(list(patterns), module)
        return next((key for key in patterns if self._matches(rf"(.*\.)?({key})", module)), module)

    def _matches(self, pattern: str, module: str) -> bool:
        if len(pattern) > _PATTERN_CHARACTERS or not _PATTERN.fullmatch(pattern):
            raise AdapterError(
                f"{self.where}: {pattern!r:.200} is neither the name of a module nor a simple regular expression "
                "for names; list the modules by name"
            )
        try:
            with self.clock.running() as left_sec:
                return regex.fullmatch(pattern, module, timeout=left_sec) is not None
        except (regex.error, TimeoutError, OverflowError, RecursionError) as error:
            raise AdapterError(
                f"{self.where}: the pattern {pattern!r:.200} is not a usable regular expression; "
                "list the modules by name"
            ) from error


def read_lora_rules(path: Path) -> LoraRules:
    """Read an `adapter_config.json`.

    Raises:
        AdapterError: not JSON, not LoRA, a value of the wrong kind, or an option that is not plain LoRA.
    """
    raw = read_json(path)
    _check_plain(path, raw)
    targets = _names(path, "target_modules", raw.get("target_modules"))
    if not targets:
        raise AdapterError(f"{path}: target_modules names no module; expected names such as 'q_proj'")
    excluded = _names(path, "exclude_modules", raw.get("exclude_modules") or [])
    layers = _layers(path, raw.get("layers_to_transform"))
    by_layer = layers is not None and not isinstance(targets, str)
    config = LoraConfig(
        target_modules=None if isinstance(targets, str) else list(targets),
        exclude_modules=None if isinstance(excluded, str) else list(excluded),
        layers_to_transform=layers if by_layer else None,
        layers_pattern=_layers_pattern(path, raw.get("layers_pattern")) if by_layer else None,
    )
    return LoraRules(
        where=path,
        config=config,
        rank=_rank(path, "r", raw.get("r")),
        alpha=_number(path, "lora_alpha", raw.get("lora_alpha")),
        root_of_rank=bool(raw.get("use_rslora", False)),
        magnitudes=bool(raw.get("use_dora", False)),
        targets=targets,
        excluded=excluded,
        plain=not excluded and not by_layer,
        rank_pattern={key: _rank(path, key, value) for key, value in _patterns(path, raw, "rank_pattern")},
        alpha_pattern={key: _number(path, key, value) for key, value in _patterns(path, raw, "alpha_pattern")},
        base_model=shown(raw["base_model_name_or_path"]) if raw.get("base_model_name_or_path") else None,
    )


def _check_plain(path: Path, raw: dict[str, Any]) -> None:
    peft_type = raw.get("peft_type")
    if peft_type != "LORA":
        raise AdapterError(f"{path}: peft_type is {peft_type!r:.200}; only 'LORA' can be read")
    for option in _NOT_PLAIN:
        if raw.get(option):
            raise AdapterError(
                f"{path}: {option} is {raw[option]!r:.200}; only LoRA and DoRA can be read, without this option"
            )
    if raw.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is {raw['bias']!r:.200}; only 'none' can be read")
    start = raw.get("init_lora_weights", True)
    if start not in _HARMLESS_STARTS:
        raise AdapterError(
            f"{path}: init_lora_weights is {start!r:.200}, which also changes the base weights; "
            "convert the adapter to plain LoRA with the tool that made it"
        )


def _names(path: Path, key: str, value: object) -> Names:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        _check_count(path, key, len(value))
        return tuple(value)
    raise AdapterError(f"{path}: {key} is {value!r:.200}; expected a list of names or a pattern")


def _patterns(path: Path, raw: dict[str, Any], key: str) -> list[tuple[str, object]]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: {key} is {value!r:.200}; expected an object from names to numbers")
    _check_count(path, key, len(value))
    return list(value.items())


def _check_count(path: Path, key: str, count: int) -> None:
    if count > _MAX_NAMES:
        raise AdapterError(f"{path}: {key} has {count:,} entries; at most {_MAX_NAMES} are read: VibeVoice has fewer")


def _layers(path: Path, value: object) -> list[int] | None:
    if value is None or value == []:
        return None
    layers: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(layer, int) for layer in layers):
        raise AdapterError(f"{path}: layers_to_transform is {value!r:.200}; expected numbers of layers")
    return layers


def _layers_pattern(path: Path, value: object) -> list[str] | None:
    if not value:
        return None
    names: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and _is_name(name) for name in names):
        raise AdapterError(f"{path}: layers_pattern is {value!r:.200}; expected a name such as 'layers'")
    _check_count(path, "layers_pattern", len(names))
    return names


def _is_name(pattern: str) -> bool:
    """Whether a pattern is a module's name, perhaps with a sign for its beginning: harmless as a regular expression."""
    return len(pattern) <= _PATTERN_CHARACTERS and regex.fullmatch(r"\^?[\w.]*", pattern) is not None


def _rank(path: Path, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_RANK:
        raise AdapterError(f"{path}: {shown(key)} is {value!r:.200}; expected a rank of at least 1")
    return value


def _number(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_ALPHA:  # NaN too
        raise AdapterError(f"{path}: {shown(key)} is {value!r:.200}; expected a number")
    return float(value)
