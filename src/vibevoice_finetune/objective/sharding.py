"""Weights split over processes (FSDP2), and whole tensors out of split ones and back.

Why: with `--fsdp` each process holds its share of every tensor, of its gradient and of the optimizer's state, and the
layers are gathered one at a time while they compute. Everything that is written is written whole, so that what one
number of processes leaves behind another goes on from, split or not.

In: the model with adapters attached. Out: the same model, its parameters `DTensor`s. Gathering is a joint act: every
process must call for the same tensors in the same order.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vibevoice_finetune.base_model import parts


def split(whole_model: nn.Module, model: nn.Module, device: torch.device, world_size: int) -> None:
    """Split the parameters over all processes, in place; the processes must hold the same values.

    A layer of the language model or of the diffusion head is gathered when its turn comes, in the forward and again in
    the backward pass, and given back after each: `reshard_after_forward` also of the outermost module, since the moving
    average is swapped in and out between two evaluations, which a gathered copy would not notice.

    Args:
        whole_model: the module whose forward is called, around `model`.
        model: with adapters attached; it may lie on the CPU, layer by layer it moves to the device.
        device: of this process.
        world_size: number of processes.
    """
    mesh: DeviceMesh = init_device_mesh(device.type, (world_size,))
    scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}  # cannot be split, are frozen
    for scalar in scalars:
        scalar.data = scalar.data.to(device)
    for layer in (*parts.language_model(model).layers, *parts.diffusion_head(model).layers):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(whole_model, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)


def is_split(module: nn.Module) -> bool:
    """Whether `split` was called with this module."""
    return isinstance(module, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor; what is not split is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without asking the others."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, which every process has, into one that may be split."""
    target.copy_(_as(value, target))


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors by name, split ones on the CPU; one after another, so that one at a time is whole on the device.

    Args:
        tensors: the same names in every process.
        keep: False in a process that takes part but has no use for the result, which is then empty.
    """
    result = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if keep:
            result[name] = (value.cpu() if isinstance(tensor, DTensor) else value).contiguous()
    return result


def gathered_optimizer(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors; `keep` as in `gathered`."""
    found = optimizer.state_dict()
    state = {}
    for number, values in found["state"].items():
        tensors = gathered({name: v for name, v in values.items() if isinstance(v, Tensor)}, keep=keep)
        state[number] = {**values, **tensors} if keep else {}
    return {**found, "state": state}


def split_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """What `gathered_optimizer` gave, each tensor in the shape of a parameter split as that parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    state = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        state[number] = {
            name: _as(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value
            for name, value in saved["state"].get(number, {}).items()
        }
    return {**saved, "state": {number: values for number, values in state.items() if values}}


def _as(value: Tensor, target: Tensor) -> Tensor:
    """The whole tensor on the target's device, split as the target is."""
    value = value.to(target.device)
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
