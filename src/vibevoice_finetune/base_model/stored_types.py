"""Numbers that a base model may be stored in, and those that are refused because they are not its weights.

Why: many copies of the released models are quantised. Their files look like damaged ones (other shapes, tensors that no
VibeVoice has), or load as if their integers were weights. They are told by what their configuration says, else by the
names and types of their tensors.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from vibevoice_finetune.errors import BaseModelError, shown
from vibevoice_finetune.files.headers import StoredTensor

logger = logging.getLogger(__name__)

FLOATS = ("F32", "BF16", "F16", "F64")
FLOATS_8 = ("F8_E4M3", "F8_E5M2")

# What quantisation programs add to the names of tensors. The first that is found decides, so the order matters.
_MARKS = (
    ("bitsandbytes, 8 bit", (".SCB", ".weight_format")),
    ("bitsandbytes, 4 bit", (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")),
    ("GPTQ", (".g_idx",)),
    ("AWQ or GPTQ", (".qweight", ".qzeros")),
    ("compressed-tensors", (".weight_packed", ".weight_shape")),
    ("HQQ", (".W_q",)),
    ("quanto", ("._data", "._scale")),
    ("fp8", (".weight_scale", ".weight_scale_inv", ".input_scale", ".scale_weight", ".scale_input", "scaled_fp8")),
)
_INSIDE = {".quant_state.": "bitsandbytes, 4 bit"}
_ADVICE = (
    "a fine-tune starts from the model's own weights; give the unquantised model, for example "
    "microsoft/VibeVoice-1.5B or aoi-ot/VibeVoice-Large; train can quantise it while loading, with --load_in_8bit True "
    "or --load_in_4bit True"
)


def check_quantization_config(raw: Mapping[str, Any], where: str) -> None:
    """Refuse a `config.json` that says that its model is quantised.

    Raises:
        BaseModelError: it is; the message says how, and what to give instead.
    """
    sections = [raw, *(value for value in raw.values() if isinstance(value, Mapping))]
    for section in sections:
        found = section.get("quantization_config") or section.get("compression_config")
        if found:
            raise BaseModelError(f"{where}: the model is quantised ({_method(found)}); {_ADVICE}")


def check_stored_types(tensors: Sequence[StoredTensor], where: Path) -> None:
    """Refuse tensors that are not floating-point weights; say once that weights of 8 bits are.

    Args:
        tensors: all tensors of a model.
        where: the file to name in messages.

    Raises:
        BaseModelError: the model is quantised, or some of its tensors are integers, truth values or complex numbers.
    """
    method = _method_by_names([stored.name for stored in tensors])
    if method is not None:
        raise BaseModelError(f"{where}: the model is quantised ({method}); {_ADVICE}")
    others = [stored for stored in tensors if stored.dtype not in FLOATS + FLOATS_8]
    if others:
        first = others[0]
        raise BaseModelError(
            f"{first.file}: {len(others)} of {len(tensors)} tensors are not floating-point weights: "
            f"{shown(first.name)} is {first.dtype}; expected {', '.join(FLOATS)}; {_ADVICE}"
        )
    counts = Counter(stored.dtype for stored in tensors if stored.dtype in FLOATS_8)
    for dtype, count in counts.items():
        _warn_once(
            f"{where}: {count} of {len(tensors)} tensors are stored in 8 bits ({dtype}), with two or three binary "
            "digits of precision left; the result will be a fine-tune of these rounded weights. The model in bf16 is "
            "the better start, for example microsoft/VibeVoice-1.5B or aoi-ot/VibeVoice-Large"
        )


@lru_cache(maxsize=64)  # a command reads the headers several times
def _warn_once(message: str) -> None:
    logger.warning(message)


def _method(found: Any) -> str:
    """How a `quantization_config` says that a model is quantised, in a few words."""
    if not isinstance(found, Mapping):
        return shown(repr(found))[:80]
    bits = next((found[key] for key in ("bits", "num_bits", "w_bit", "weight_bits") if key in found), None)
    bits = 8 if found.get("load_in_8bit") is True else 4 if found.get("load_in_4bit") is True else bits
    method = shown(found.get("quant_method", "quantization_config"))[:80]
    return f"{method}, {bits} bit" if isinstance(bits, int) else method


def _method_by_names(names: Sequence[str]) -> str | None:
    for method, endings in _MARKS:
        if any(name.endswith(endings) for name in names):
            return method
    return next((method for mark, method in _INSIDE.items() if any(mark in name for name in names)), None)
