"""What a flag needs on this machine: a package, a GPU, a key. Found out while parsing, before any data is touched.

Packages are looked for, not imported: that takes no time, and prints none of their warnings beside an error line.
"""

import importlib.util
import netrc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import shown

LOGGERS = {
    "azure_ml": ("azureml", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "kubeflow": ("kubeflow", "kubeflow"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", '"vibevoice-finetune[tensorboard]"'),
    "trackio": ("trackio", '"vibevoice-finetune[trackio]"'),
    "wandb": ("wandb", '"vibevoice-finetune[wandb]"'),
}
"""Loggers of transformers: the module that each needs, and what pip calls it."""

KEYS = {"comet_ml": "COMET_API_KEY", "neptune": "NEPTUNE_API_TOKEN"}
"""Loggers that cannot do without a key, and the variable that holds it."""

WANDB_WITHOUT_KEY = ("offline", "disabled", "dryrun")


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that another one has put into sys.modules by hand
        return True


def check_loggers(names: Sequence[str]) -> list[str]:
    """The loggers of `--report_to` without repetitions; empty for `none`.

    Raises:
        ArgumentError: a name that is not one, a package or a key that is missing.
    """
    lower = list(dict.fromkeys(name.strip().lower() for name in names if name.strip()))
    if lower == ["none"]:
        return []
    if lower == ["all"]:
        return [name for name, (module, _) in LOGGERS.items() if is_installed(module)]
    for name in lower:
        if name not in LOGGERS:
            alone = " stands alone" if name in ("none", "all") else f": is not a logger; there are {', '.join(LOGGERS)}"
            raise ArgumentError(f"--report_to {shown(name)}{alone}.")
        module, package = LOGGERS[name]
        if not is_installed(module):
            raise ArgumentError(f"--report_to {name}: {module} is not installed; run: pip install {package}")
        if name in KEYS and not os.environ.get(KEYS[name]):
            raise ArgumentError(f"--report_to {name}: set the variable {KEYS[name]} to your key.")
    if "wandb" in lower and not _has_wandb_key():
        raise ArgumentError(
            "--report_to wandb: no key; run: wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline to keep the logs "
            "on this machine."
        )
    return lower


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_MODE", "").lower() in WANDB_WITHOUT_KEY or os.environ.get("WANDB_API_KEY"):
        return True
    if (
        os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes")
        or "WANDB_IDENTITY_TOKEN_FILE" in os.environ
    ):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].strip("/")
    for path in (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc"):
        try:
            if path and netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def check_attention(implementation: str, *, on_gpu: bool, bf16: bool) -> None:
    """Refuse flash-attn where it cannot run.

    Raises:
        ArgumentError: its package, a GPU or bf16 is missing.
    """
    if implementation != "flash_attention_2":
        return
    flag = "--attn_implementation flash_attention_2"
    if not is_installed("flash_attn"):
        raise ArgumentError(
            f"{flag}: flash_attn is not installed; leave the flag out (auto: the best that is there), or run: "
            "pip install flash-attn --no-build-isolation"
        )
    if not on_gpu:
        raise ArgumentError(f"{flag}: runs on NVIDIA GPUs only; leave the flag out (auto: varlen on a CPU).")
    if not bf16:
        raise ArgumentError(f"{flag}: computes in bf16 only; add --bf16 True, or leave the flag out.")


def check_bitsandbytes(flag: str) -> None:
    """Refuse a flag that needs bitsandbytes where it is not installed.

    Raises:
        ArgumentError: says how to install it.
    """
    if not is_installed("bitsandbytes"):
        raise ArgumentError(f'{flag}: bitsandbytes is not installed; run: pip install "vibevoice-finetune[4bit]"')


def check_liger(*, on_gpu: bool) -> None:
    """Refuse Liger's kernels where they cannot run.

    Raises:
        ArgumentError: an NVIDIA GPU or the package is missing.
    """
    if not on_gpu:
        raise ArgumentError("--use_liger_kernel: runs on NVIDIA GPUs only; leave the flag out.")
    if not is_installed("liger_kernel"):
        raise ArgumentError(
            '--use_liger_kernel: liger_kernel is not installed; run: pip install "vibevoice-finetune[liger]"'
        )


def check_compiler(backend: str, known: Sequence[str], usual: Sequence[str], *, on_gpu: bool) -> None:
    """Refuse a backend of torch.compile that does not exist, or that finds no compiler.

    Raises:
        ArgumentError: says what there is.
    """
    if backend not in known:
        raise ArgumentError(f"--torch_compile_backend {shown(backend)}: is not one; there are {', '.join(usual)}.")
    compilers = (os.environ.get("CXX") or "g++", "clang++")
    if backend == "inductor" and not on_gpu and not any(map(shutil.which, compilers)):
        raise ArgumentError("--torch_compile: inductor finds no C++ compiler; install g++, or leave the flag out.")
