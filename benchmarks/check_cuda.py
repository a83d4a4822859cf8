"""Is it right on this device: the golden numbers and the invariants of training, in float32 and in bf16.

The golden checkpoints (`tests/golden`) are loaded on the device and compared with what the original implementation
computed; then rows packed together are compared with rows alone, and every LoRA matrix must get its gradient, with and
without recomputed layers. An error is the norm of the difference over the norm of what is expected. In float32 it is
rounding; in bf16, with its 8 bits, around a hundredth.

    python -m benchmarks.check_cuda
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import record
from tests.golden.test_golden_losses import golden_batch
from tests.rows import Small
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.load import (
    BaseModel,
    load_encoders,
    load_for_generation,
    load_for_training,
    open_base_model,
)
from vibevoice_finetune.base_model.tensor_names import to_original
from vibevoice_finetune.data.collate import Batch, collate
from vibevoice_finetune.data.dataset import Draw
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.latents.shards import Part
from vibevoice_finetune.objective.attention import set_attention
from vibevoice_finetune.objective.objective import LossSums, Objective
from vibevoice_finetune.training.metrics import LossWeights, Terms

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SPECIAL = SpecialTokens(speech_start=409, speech_end=410, frame=411, end_of_text=400)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Check:
    """One comparison; it holds if the error is a number at most the limit."""

    name: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it passed; not a number never does."""
        return self.error <= self.limit


def main() -> None:
    """Run all checks, print those that fail, write the result; exit code 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default=str(record.RESULTS))
    flags = parser.parse_args()
    device = torch.device(flags.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    checks = [
        Check(f"{model} {str(dtype).removeprefix('torch.')} {check.name}", check.error, check.limit)
        for model in ("tied", "untied")
        for dtype in (torch.float32, torch.bfloat16)
        for group in (modules, losses, packing, gradients)
        for check in group(model, dtype, device)
    ]
    failed = [check for check in checks if not check.holds]
    for check in failed:
        print(f"FAILED {check.name}: error {check.error:.2e}, limit {check.limit:.0e}")
    worst = {
        dtype: max(check.error for check in checks if f" {dtype} " in check.name) for dtype in ("float32", "bfloat16")
    }
    print(f"{len(checks) - len(failed)} of {len(checks)} hold on {device}; largest errors: {worst}")
    numbers = {"benchmark": "check_cuda", "failed": len(failed), "checks": [asdict(check) for check in checks]}
    record.write(f"check-{device.type}", numbers, Path(flags.out))
    sys.exit(1 if failed else 0)


def modules(model: str, dtype: torch.dtype, device: torch.device) -> Iterator[Check]:
    """Each part of the model, by itself."""
    checkpoint = open_golden(model)
    expected = {name: tensor.to(device) for name, tensor in load_file(GOLDEN / model / "expected.safetensors").items()}
    whole = load_for_generation(checkpoint, dtype, device)
    limit = LIMITS[dtype]

    def given(name: str) -> Tensor:
        return expected[name].to(dtype)

    with torch.no_grad():
        encoders, waveform_BN = load_encoders(checkpoint, dtype, device), expected["encode.waveform"].squeeze(1)
        acoustic_BFC, semantic_BFS = (encoders.encode(part, waveform_BN) for part in Part)
        yield compare("acoustic encoder", acoustic_BFC, expected["encode.acoustic_mean"], limit)
        yield compare("semantic encoder", semantic_BFS, expected["encode.semantic"], limit)
        audio = whole.model.audio_tower.decode(given("decode.latents")).audio
        yield compare("decoder", audio, expected["decode.waveform"], limit)
        for kind, connector in (
            ("acoustic", parts.acoustic_connector(whole)),
            ("semantic", parts.semantic_connector(whole)),
        ):
            result = connector(given(f"connector.{kind}_in"))
            yield compare(f"{kind} connector", result, expected[f"connector.{kind}_out"], limit)
        velocity_NKC = parts.predict_velocity(
            parts.diffusion_head(whole),
            given("head.noisy")[:, None],
            expected["head.timestep"].float()[:, None],
            given("head.condition"),
        )
        yield compare("diffusion head", velocity_NKC[:, 0], expected["head.out"], limit)
        seen = expected["lm.attention_mask"].bool()
        hidden_BTD = parts.language_model(whole)(
            input_ids=expected["lm.input_ids"], attention_mask=expected["lm.attention_mask"]
        ).last_hidden_state
        yield compare("language model", hidden_BTD[seen], expected["lm.hidden"][seen], limit)
        yield compare("logits", parts.lm_head(whole)(hidden_BTD)[seen], expected["lm.logits"][seen], limit)


def losses(model: str, dtype: torch.dtype, device: torch.device) -> Iterator[Check]:
    """The golden batch with the golden draws: losses, and the gradient norm of every tensor that has one."""
    expected = load_file(GOLDEN / model / "expected.safetensors")
    info = json.loads((GOLDEN / model / "expected.json").read_text(encoding="utf-8"))["loss"]
    checkpoint = open_golden(model)
    batch = golden_batch(load_for_generation(checkpoint, torch.float32, "cpu"), expected, info["ddpm_batch_mul"])
    objective = Objective(load_for_training(checkpoint, dtype, device), SPECIAL)
    terms = run(objective, batch, dtype, device)
    terms.total(LossWeights(info["diffusion_weight"], info["ce_weight"], 0.0)).backward()
    reference, limit = info["as_generated"], LIMITS[dtype]
    yield compare("diffusion loss", terms.diffusion, torch.tensor(reference["diffusion"]), limit)
    yield compare("text loss", terms.text, torch.tensor(reference["ce"]), limit)
    norms = {
        to_original(name): parameter.grad.float().norm()
        for name, parameter in objective.model.named_parameters()
        if parameter.grad is not None
    }
    names = [name for name in reference["grad_norms"] if name in norms]
    assert len(names) > len(norms) // 2, "the golden gradients are of other tensors"
    wanted = torch.tensor([reference["grad_norms"][name] for name in names])
    yield compare("gradient norms", torch.stack([norms[name] for name in names]), wanted, limit)


def packing(model: str, dtype: torch.dtype, device: torch.device) -> Iterator[Check]:
    """Rows of a packed batch do not see each other: losses and gradients are those of the rows one by one."""
    with tempfile.TemporaryDirectory() as folder:
        small = Small(GOLDEN / model / "checkpoint", Path(folder), GOLDEN / "tokenizer")
        rows = small.dataset()
        examples = [rows[Draw(0, row)] for row in range(8)]
        together = [collate(examples)]
        apart = [collate([example]) for example in examples]
        for attention in ("varlen", "sdpa", "eager"):

            def learn(batches: list[Batch], attention: str = attention) -> tuple[Tensor, Tensor]:
                objective = Objective(load_for_training(small.checkpoint, dtype, device), small.special)
                set_attention(parts.language_model(objective.model), attention)
                total = torch.zeros((), device=device)
                for batch in batches:
                    sums = forward(objective, batch, dtype, device)
                    share = sums["diffusion"] + sums["text"] + sums["control"]
                    share.backward()
                    total += share.detach()
                layers = parts.language_model(objective.model).layers
                return total, torch.cat([p.grad.float().flatten() for p in layers.parameters() if p.grad is not None])

            (packed_sum, packed_gradient), (sum_alone, gradient_alone) = learn(together), learn(apart)
            yield compare(f"packed rows, {attention}: losses", packed_sum, sum_alone, LIMITS[dtype])
            yield compare(f"packed rows, {attention}: gradients", packed_gradient, gradient_alone, LIMITS[dtype])


def gradients(model: str, dtype: torch.dtype, device: torch.device) -> Iterator[Check]:
    """Every trained tensor is float32 and gets a gradient, the same with and without recomputed layers."""
    with tempfile.TemporaryDirectory() as folder:
        small = Small(GOLDEN / model / "checkpoint", Path(folder), GOLDEN / "tokenizer")
        rows = small.dataset()
        batch = collate([rows[Draw(0, row)] for row in range(8)])
        found = []
        for recomputed in (False, True):
            torch.manual_seed(0)
            objective = Objective(load_for_training(small.checkpoint, dtype, device), small.special).train()
            attach(objective.model, AdapterPlan(4, 8, 0.0, TARGETS, "full", train_connectors=True))
            if recomputed:
                objective.activation_checkpointing_enable()
            sums = forward(objective, batch, dtype, device)
            (sums["diffusion"] + sums["text"] + sums["control"]).backward()
            trained = trainable_parameters(objective.model)
            # LoRA's second matrix begins at zero, so the first one's gradient is zero in the first step.
            silent = [
                name
                for name, parameter in trained.items()
                if parameter.dtype is not torch.float32
                or parameter.grad is None
                or ("lora_A" not in name and not parameter.grad.any())
            ]
            yield Check(f"tensors without gradient, recomputed {recomputed}", float(len(silent)), 0.0)
            found.append(torch.cat([p.grad.flatten() for p in trained.values() if p.grad is not None]))
        yield compare("gradients with recomputed layers", found[1], found[0], LIMITS[dtype])


def open_golden(model: str) -> BaseModel:
    """One of the two golden checkpoints."""
    return open_base_model(str(GOLDEN / model / "checkpoint"))


def run(objective: Objective, batch: Batch, dtype: torch.dtype, device: torch.device) -> Terms:
    """The losses of a batch, divided by their counts."""
    return Terms.of(forward(objective, batch, dtype, device), batch["counts"])


def forward(objective: Objective, batch: Batch, dtype: torch.dtype, device: torch.device) -> LossSums:
    """The training forward as the trainer runs it: in bf16, under autocast."""
    there = cast(Batch, {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
        sums: LossSums = objective(there)
    return sums


def compare(name: str, actual: Tensor, expected: Tensor, limit: float) -> Check:
    """The norm of the difference over the norm of what is expected."""
    difference = actual.detach().double().cpu() - expected.double().cpu()
    return Check(name, (difference.norm() / expected.double().cpu().norm()).item(), limit)


if __name__ == "__main__":
    main()
