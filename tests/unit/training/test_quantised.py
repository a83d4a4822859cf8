"""4-bit and 8-bit training for real, on the CPU backend of bitsandbytes."""

from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef

from tests.rows import Small
from vibevoice_finetune.adapters.apply import load_adapter
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model import load as checkpoint_room
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.load import load_for_training
from vibevoice_finetune.base_model.quantize import keep_trainable, quantization_config
from vibevoice_finetune.base_model.weights import lazy_tensors
from vibevoice_finetune.data.collate import collate
from vibevoice_finetune.data.dataset import Draw
from vibevoice_finetune.objective.attention import set_attention
from vibevoice_finetune.objective.objective import LossSums, Objective

bitsandbytes = pytest.importorskip("bitsandbytes")

PLAN = AdapterPlan(
    lora_r=8,
    lora_alpha=16,
    lora_dropout=0.0,
    lora_target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    head="frozen",
    train_connectors=False,
    layers_to_freeze=(),
)


@pytest.fixture(scope="module")
def small(tiny_checkpoint, tmp_path_factory):
    return Small(tiny_checkpoint, tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def batch(small):
    dataset = small.dataset(ddpm_batch_mul=4)
    return collate([dataset[Draw(0, row)] for row in (0, 6)])  # short rows: 4-bit layers are slow on CPUs


def quantised(small, bits):
    model = load_for_training(small.checkpoint, torch.bfloat16, "cpu", quantization_config(bits))
    if bits == 4:
        keep_trainable(model)
    return Objective(model, small.special)


def losses(objective, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return objective(batch)


@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_language_models_linear_layers_are_quantised(small, bits):
    model = quantised(small, bits).model
    kind = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    found = [name for name, module in model.named_modules() if isinstance(module, kind)]
    assert len(found) == 7 * small.facts.num_layers
    assert all(name.startswith("model.language_model.layers.") for name in found)
    assert type(parts.lm_head(model)) is torch.nn.Linear


@pytest.mark.parametrize("bits", [4, 8])
def test_while_loading_one_tensor_at_a_time_is_whole(small, bits, monkeypatch):
    """The peak is the result and the largest tensor: what is quantised is freed before the next one is read."""
    storages, most, mappings = [], [], []

    class Watched:
        def __init__(self, name, piece):
            self.name, self.piece = name, piece

        def __getitem__(self, index):
            tensor = self.piece[index]
            if self.name.startswith("model.language_model.layers.") and tensor.ndim == 2:  # will be quantised
                storages.append(StorageWeakRef(tensor.untyped_storage()))
                most.append(sum(not storage.expired() for storage in storages))
            return tensor

        def __getattr__(self, name):
            return getattr(self.piece, name)

    @contextmanager
    def watched(tensors, *, mapped):
        mappings.append(mapped)
        with lazy_tensors(tensors, mapped=mapped) as slices:
            yield {name: Watched(name, piece) for name, piece in slices.items()}

    monkeypatch.setattr(checkpoint_room, "lazy_tensors", watched)
    quantised(small, bits)
    assert len(most) == 7 * small.facts.num_layers
    assert max(most) == 1
    assert mappings == [False]  # mapped pages of what was quantised would count until the end


@pytest.mark.parametrize("bits", [4, 8])
def test_the_loss_is_close_to_the_unquantised_models(small, batch, bits):
    plain = small.objective()(batch)
    found = losses(quantised(small, bits), batch)
    for name in ("diffusion", "text", "control"):
        assert found[name].item() == pytest.approx(plain[name].item(), rel=0.05), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_learns_on_four_bits_also_after_an_evaluation(small, batch, checkpointing):
    objective = quantised(small, 4)
    torch.manual_seed(0)
    attach(objective.model, PLAN)
    if checkpointing:
        objective.activation_checkpointing_enable()
    objective.eval()
    with torch.no_grad():
        first = losses(objective, batch)["text"].item()
    objective.train()
    parameters = trainable_parameters(objective.model)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    for _ in range(8):
        sums = losses(objective, batch)
        (sums["text"] / batch["counts"].text).backward()
        for name, parameter in parameters.items():
            if "lora_B" in name:
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, name  # noqa: PT018 one fact
        optimizer.step()
        optimizer.zero_grad()
    assert losses(objective, batch)["text"].item() < 0.9 * first


@pytest.mark.parametrize("recomputed", [False, True])
def test_packed_rows_equal_rows_alone_on_four_bits(small, recomputed):
    """Attention row by row. The layers compute in bf16, so gradients agree to a few thousandths; a leak is near one."""
    dataset = small.dataset()
    examples = [dataset[Draw(0, row)] for row in (0, 6)]

    def learn(batches):
        model = load_for_training(small.checkpoint, torch.float32, "cpu", quantization_config(4))
        keep_trainable(model)
        set_attention(parts.language_model(model), "varlen")
        torch.manual_seed(0)
        attach(model, PLAN)
        objective = Objective(model, small.special).train()
        if recomputed:
            objective.activation_checkpointing_enable()
        total = 0.0
        for batch in batches:
            sums = objective(batch)
            (sums["diffusion"] + sums["text"]).backward()
            total += sums["text"].item()
        return total, {name: p.grad for name, p in trainable_parameters(model).items() if "lora_B" in name}

    (together, packed), (apart, alone) = learn([collate(examples)]), learn([collate([one]) for one in examples])
    assert together == pytest.approx(apart, rel=1e-5)
    for name, gradient in packed.items():
        assert (gradient - alone[name]).abs().max() <= 1e-2 * alone[name].abs().max(), name


def test_the_adapter_loads_on_the_unquantised_base(small, batch, tmp_path):
    objective = quantised(small, 4)
    torch.manual_seed(0)
    attach(objective.model, PLAN)
    with torch.no_grad():
        for name, parameter in trainable_parameters(objective.model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    info = AdapterInfo(base_model="tiny", base_fingerprint="x", expects_voice_prompt=True)
    save_adapter(objective.model, PLAN, tmp_path / "lora", info)
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}

    plain = small.objective()
    before = plain(batch)
    load_adapter(plain.model, tmp_path / "lora")
    after = plain(batch)
    adapted = losses(objective, batch)
    for name in LossSums.__annotations__:
        if name in ("diffusion", "text", "control"):
            change = abs(after[name].item() - before[name].item())
            assert change > 0
            assert adapted[name].item() == pytest.approx(after[name].item(), rel=0.05), name
