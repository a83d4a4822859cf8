import itertools

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tests.unit.small_model import (
    ACOUSTIC,
    HIDDEN,
    LAYERS,
    SEMANTIC,
    largest_difference,
    outputs,
    plan,
    small_model,
    train_at_random,
)
from vibevoice_finetune.adapters.attach import (
    AdapterPlan,
    attach,
    check_state,
    head_parameters,
    merge,
    trainable_parameters,
)
from vibevoice_finetune.adapters.lora import fold, lora_layers, rely_on_autocast
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.errors import ArgumentError, RunCheckpointError

COMBINATIONS = [
    plan(lora_target_modules=targets, head=head, train_connectors=connectors, lora_dropout=0.1)
    for targets, head, connectors in itertools.product(
        ((), ("q_proj", "down_proj")), ("frozen", "full", "lora"), (False, True)
    )
    if targets or head != "frozen" or connectors
]


def name_of(case: AdapterPlan) -> str:
    return f"{'lora' if case.lora_target_modules else 'none'}-{case.head}-{case.train_connectors}"


combinations = pytest.mark.parametrize("case", COMBINATIONS, ids=name_of)

# The head's linear layers: three around the layers, two of the timestep, five a layer without the norm.
HEAD_LINEAR = 2 + 2 + 2 * 4 + 2
HEAD_TENSORS = 2 + 2 + 2 * 5 + 2


def expected_trainable(case: AdapterPlan) -> dict[str, int]:
    """Number of trainable tensors a block, counted by hand."""
    head = {"frozen": 0, "full": HEAD_TENSORS, "lora": 2 * HEAD_LINEAR}[case.head]
    return {
        "model.language_model.": LAYERS * 2 * 2 if case.lora_target_modules else 0,  # two targets, A and B
        "model.diffusion_head.": head,
        "model.multi_modal_projector.": 5 if case.train_connectors else 0,
        "model.semantic_connector.": 5 if case.train_connectors else 0,
    }


@combinations
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_exactly_the_plan_is_trainable_and_all_of_it_is_float32(case: AdapterPlan, dtype: torch.dtype) -> None:
    model = small_model(dtype=dtype)
    attach(model, case)
    trained = trainable_parameters(model)
    for prefix, expected in expected_trainable(case).items():
        assert sum(name.startswith(prefix) for name in trained) == expected
    assert len(trained) == sum(expected_trainable(case).values())
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert all("lora_" in name for name in trained if name.startswith("model.language_model."))
    frozen = [parameter for name, parameter in model.named_parameters() if name not in trained]
    assert {parameter.dtype for parameter in frozen} == {dtype}
    assert not parts.latent_scale(model).requires_grad
    assert not parts.latent_bias(model).requires_grad


@combinations
def test_attaching_changes_no_output_and_no_class(case: AdapterPlan) -> None:
    model = small_model()
    before, classes = outputs(model), {name: type(module) for name, module in model.named_modules()}
    attach(model, case)
    assert largest_difference(before, outputs(model)) == 0.0  # LoRA's B is zero
    for name, module in model.named_modules():
        if name in classes and not isinstance(module, LoraLayer):
            assert type(module) is classes[name]
    assert not model.training


def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
    """Something that depends on every tunable part."""
    head = parts.diffusion_head(model)
    frames = 4
    acoustic = parts.acoustic_connector(model)
    semantic = parts.semantic_connector(model)
    acoustic_FC = torch.randn(frames, ACOUSTIC, generator=generator)
    embeds_FD = acoustic(parts.as_input(acoustic, acoustic_FC)) + semantic(
        parts.as_input(semantic, torch.randn(frames, SEMANTIC, generator=generator))
    )
    language_model = parts.language_model(model)
    hidden_FD = language_model(inputs_embeds=embeds_FD[None].to(language_model.dtype), use_cache=False)
    steps = torch.tensor([[1], [400], [900], [10]])
    return (
        parts.predict_velocity(head, acoustic_FC[:, None], steps, hidden_FD.last_hidden_state[0])
        .float()
        .square()
        .mean()
    )


def with_peft_cast(case: AdapterPlan, *, cast: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients and kept bytes under bf16 autocast, with PEFT's cast of the input to float32 or without."""
    model = small_model(dtype=torch.bfloat16).train()
    torch.manual_seed(0)
    attach(model, case)
    train_at_random(model)
    if not cast:
        rely_on_autocast(model)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        value = loss(model, torch.Generator().manual_seed(1))
    value.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in trainable_parameters(model).items() if p.grad is not None}
    return value, gradients, sum(kept.values())


EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_without_pefts_cast_nothing_changes_under_autocast() -> None:
    """bf16 → float32 → bf16 is the identity: losses and gradients are equal in every bit, and less is kept."""
    case = plan(lora_target_modules=EVERYWHERE, head="lora", lora_dropout=0.0)
    (with_cast, its_gradients, more), (without, gradients, less) = (
        with_peft_cast(case, cast=cast) for cast in (True, False)
    )
    assert torch.equal(with_cast, without)
    assert gradients.keys() == its_gradients.keys()
    assert len(gradients) > 2 * len(EVERYWHERE)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, its_gradients[name]), name
    assert less < more


def test_without_pefts_cast_dropout_keeps_half_the_mask() -> None:
    case = plan(lora_target_modules=EVERYWHERE, head="frozen", lora_dropout=0.5)
    (_, _, more), (_, _, less) = (with_peft_cast(case, cast=cast) for cast in (True, False))
    # Four tokens; six layers read D numbers, down_proj 24. The embeddings need no gradient, so the first q, k and v
    # keep no mask.
    masked = 4 * (LAYERS * (6 * HIDDEN + 24) - 3 * HIDDEN)
    assert more - less == 2 * masked  # bf16 instead of float32


@combinations
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_after_two_steps_the_trained_tensors_moved_and_no_other(case: AdapterPlan, checkpointing: bool) -> None:
    torch.manual_seed(0)  # LoRA's A
    model = small_model()
    attach(model, case)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = trainable_parameters(model)
    optimizer = torch.optim.Adam(trained.values(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):  # the first step gives A no gradient, as B is zero
        loss(model, generator).backward()  # type: ignore[no-untyped-call]
        for name, parameter in trained.items():
            assert parameter.grad is not None, name
            assert "lora_A" in name or parameter.grad.abs().max() > 0, name
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(trained)


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = small_model()
        attach(model, plan(head="lora", train_connectors=True))
        train_at_random(model)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        loss(model, torch.Generator().manual_seed(1)).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: parameter.grad for name, parameter in trainable_parameters(model).items()})
    for name, plain in gradients[0].items():
        assert plain is not None
        torch.testing.assert_close(gradients[1][name], plain, rtol=1e-5, atol=1e-7)


def test_order_of_the_heads_tensors_is_the_originals() -> None:
    entries = head_parameters(small_model())
    assert [entry.index for entry in entries] == list(range(16))
    assert [entry.original_name for entry in entries] == [
        "noisy_images_proj.weight",
        "cond_proj.weight",
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.2.weight",
        "layers.0.ffn.gate_proj.weight",
        "layers.0.ffn.up_proj.weight",
        "layers.0.ffn.down_proj.weight",
        "layers.0.norm.weight",
        "layers.0.adaLN_modulation.1.weight",
        "layers.1.ffn.gate_proj.weight",
        "layers.1.ffn.up_proj.weight",
        "layers.1.ffn.down_proj.weight",
        "layers.1.norm.weight",
        "layers.1.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.weight",
    ]
    # The final linear goes to the latents, its adaLN to shift and scale.
    assert entries[14].parameter.shape == (ACOUSTIC, HIDDEN)
    assert entries[15].parameter.shape == (2 * HIDDEN, HIDDEN)


def test_frozen_tensors_of_a_trained_head() -> None:
    model = small_model(dtype=torch.bfloat16)
    attach(model, plan(lora_target_modules=(), head="full", layers_to_freeze=(0, 7, 14)))
    assert [entry.index for entry in head_parameters(model) if not entry.parameter.requires_grad] == [0, 7, 14]
    head = parts.diffusion_head(model)
    assert not head.noisy_images_proj.weight.requires_grad
    assert not head.layers[0].norm.weight.requires_grad
    assert not head.final_layer.linear_2.weight.requires_grad
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}  # the frozen ones too


def test_lora_scale_and_rank_are_the_plans() -> None:
    model = small_model()
    attach(model, plan(lora_r=4, lora_alpha=6))
    layers = lora_layers(parts.language_model(model))
    assert sorted(layers) == [
        f"layers.{layer}.{name}" for layer in range(LAYERS) for name in ("mlp.down_proj", "self_attn.q_proj")
    ]
    layer = layers["layers.1.self_attn.q_proj"]
    assert layer.scaling == {"default": 1.5}
    assert layer.lora_A["default"].weight.shape == (4, HIDDEN)


def test_dropout_acts_in_training_only() -> None:
    model = small_model()
    attach(model, plan(lora_dropout=0.5))
    train_at_random(model)
    assert largest_difference(outputs(model), outputs(model)) == 0.0
    model.train()
    assert largest_difference(outputs(model), outputs(model)) > 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora_target_modules": ("q_proj", "query", "fc1")},
            r"--lora_target_modules query,fc1: .* it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        ),
        ({"lora_target_modules": ("proj",)}, "--lora_target_modules proj"),  # a part of a name is no name
        ({"lora_target_modules": ("embed_tokens",)}, "--lora_target_modules embed_tokens"),
        ({"head": "full", "layers_to_freeze": (3, 16, -1)}, r"--layers_to_freeze 16,-1: .* 0 to 15"),
        ({"layers_to_freeze": (3,)}, "--layers_to_freeze needs --train_diffusion_head"),
        ({"lora_target_modules": ()}, "nothing is trained"),
        (
            {"lora_target_modules": (), "head": "full", "layers_to_freeze": tuple(range(16))},
            "nothing is trained",
        ),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(changes: dict[str, object], message: str) -> None:
    model = small_model()
    state = {name: (parameter.requires_grad, parameter.dtype) for name, parameter in model.named_parameters()}
    with pytest.raises(ArgumentError, match=message):
        attach(model, plan(**changes))
    assert {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters()} == state


def test_fold_rounds_once() -> None:
    base = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)  # bf16 has steps of 2 at 256
    down, up = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0]])
    # 256 + 3 * 0.5 = 257.5, nearest 258; a delta rounded first is 1.5 all the same, but 1 + 1.5 = 2.5 is exact.
    assert fold(base, down, up, 3.0).tolist() == [[258.0, 2.5]]
    assert fold(base, down, up, 3.0).dtype is torch.bfloat16
    assert base.tolist() == [[256.0, 1.0]]


@pytest.mark.parametrize("head", ["frozen", "lora"])
def test_merging_puts_plain_layers_back_and_keeps_the_outputs(head: str) -> None:
    model = small_model()
    classes = {name: type(module) for name, module in model.named_modules()}
    attach(model, plan(head=head, train_connectors=True))
    train_at_random(model)
    layer = lora_layers(parts.language_model(model))["layers.0.self_attn.q_proj"]
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    expected = layer.get_base_layer().weight.detach() + 3.0 * (b @ a)  # alpha 6, r 2
    attached = outputs(model)
    merge(model)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    torch.testing.assert_close(parts.language_model(model).layers[0].self_attn.q_proj.weight, expected)
    for name, value in outputs(model).items():
        torch.testing.assert_close(value, attached[name], rtol=1e-4, atol=1e-4)
    attach(model, plan(head=head))  # nothing of the old adapter is in the way


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state, name: state.pop(name), "missing .*lora_A"),
        (lambda state, name: state.update(extra=state[name]), "left over extra"),
        (lambda state, name: state.update({name: state[name][:1]}), "of shape"),
        (lambda state, name: state.update({name: state[name].bfloat16()}), "bfloat16"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(spoil: object, message: str) -> None:
    model = small_model()
    attach(model, plan())
    parameters = trainable_parameters(model)
    state = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    check_state(parameters, state, "here")
    assert callable(spoil)
    spoil(state, "model.language_model.layers.1.self_attn.q_proj.lora_A.default.weight")
    with pytest.raises(RunCheckpointError, match=f"here: .*{message}"):
        check_state(parameters, state, "here")


def quantised_model() -> nn.Module:
    """The language model's linear layers in 4-bit; nothing else says so."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = small_model(dtype=torch.bfloat16)
    for module in list(parts.language_model(model).modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                packed = bitsandbytes.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                )
                packed.load_state_dict(child.state_dict())
                packed.support_avx512bf16_for_cpu = False
                setattr(module, name, packed.to("cpu"))
    return model


def test_lora_over_4bit_layers_trains_and_merges() -> None:
    from peft.tuners.lora.bnb import Linear4bit

    model = quantised_model()
    attach(model, plan(lora_target_modules=("q_proj",)))
    layers = lora_layers(parts.language_model(model))
    assert {type(layer) for layer in layers.values()} == {Linear4bit}
    trained = trainable_parameters(model)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    model.train()
    optimizer = torch.optim.Adam(trained.values(), lr=0.01)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, torch.Generator().manual_seed(1))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert all(bool(layer.lora_B["default"].weight.any()) for layer in layers.values())
    merge(model)
    assert lora_layers(parts.language_model(model)) == {}
    assert all(bool(torch.isfinite(value).all()) for value in outputs(model.eval()).values())
