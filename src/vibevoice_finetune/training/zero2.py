"""DeepSpeed's ZeRO-2 under the trainer: gradients and the optimizer's state split over processes, the weights not.

Why not as transformers and accelerate do it: they step inside the backward pass, before a gradient that is not finite
could be dropped; cast what is trained to bf16; and write checkpoints that only as many processes can read, with ZeRO
again. Here accelerate makes the engine, from the configuration of `deepspeed_config.py`; the step is the trainer's to
take or to drop, and the optimizer's state is gathered whole and taken apart again.

In: the objective before accelerate sees it, then the accelerator with its engine. Out: steps, gradients by name, and
`optimizer.state_dict()` as one process has it.

DeepSpeed's optimizer has no public names for this. What is read of it, and where said set, as seen in 0.19.8:

    bit16_groups                     trained parameters, a list a group; in spite of its name of any dtype
    round_robin_bit16_offsets        where each of them begins in its group's flat tensor
    single_partition_of_fp32_groups  this process's part of the flat tensors: what the inner optimizer sees
    averaged_gradients               for each group a list that makes this part when strung together; set to None
    all_grad_tensors                 gradients of micro-batches before the last; set to None
    micro_step_id                    −1 between two steps, which it is set to
    optimizer                        the inner one: PyTorch's
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from vibevoice_finetune.arguments import FinetuneArguments


def make_ready(objective: nn.Module, loop: FinetuneArguments) -> None:
    """Before the engine is made: what it would stumble over, or leave undone.

    Args:
        objective: with adapters attached; from here on its forward runs in bf16, if that was asked for.
        loop: its DeepSpeed configuration is completed.
    """
    for parameter in objective.parameters():
        if parameter.dim() == 0:
            # The engine broadcasts weights as bytes, which a scalar has no view as; it skips what has this attribute.
            # The scalars are frozen, so all processes have read the same ones.
            parameter.ds_optim_param = True  # type: ignore[attr-defined]
    if loop.bf16:
        objective.forward = torch.autocast(loop.device.type, torch.bfloat16)(objective.forward)
    # Set by accelerate; what runs next in this process asks for itself.
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    assert loop.deepspeed_plugin is not None
    zero = loop.deepspeed_plugin.deepspeed_config["zero_optimization"]
    trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    zero["reduce_bucket_size"] = min(zero["reduce_bucket_size"], trained)


class Zero2:
    """The engine, with its step left to the trainer; takes the place of accelerate's wrapper around it.

    Args:
        accelerator: has prepared model and optimizer; its backward passes come here from now on.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.engine = accelerator.deepspeed_engine_wrapped.engine
        self.zero = self.engine.optimizer
        accelerator.deepspeed_engine_wrapped = self

    def backward(self, loss: Tensor, sync_gradients: bool = True, **options: Any) -> None:
        """A micro-batch's backward pass; the last one of a step says so."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **options)

    def get_global_grad_norm(self) -> Tensor:
        """The 2-norm of the averaged gradient over all processes; asked for before the step, by accelerate."""
        parts = [part for parts in self.zero.averaged_gradients.values() for part in parts]
        squares = torch.stack([torch.linalg.vector_norm(part).double() for part in parts]).square().sum()
        dist.all_reduce(squares)
        return squares.sqrt()

    def step(self) -> None:
        """Clip, step, and hand the new weights to all processes."""
        self.engine.step()
        assert self.engine.was_step_applied(), "DeepSpeed found a gradient not finite that was"

    def drop(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Drop the gradients, so that nothing moves.

        Args:
            parameters: the trained ones by name.

        Returns:
            What this process held of them, flat, by name.
        """
        names = {parameter: name for name, parameter in parameters.items()}
        found = {}
        for index, parts in self.zero.averaged_gradients.items():
            flat = torch.cat([part.flatten() for part in parts])
            start = dist.get_rank() * self._own(index).numel()
            for parameter, begin in self._places(index):
                part = flat[max(begin - start, 0) : max(begin - start + parameter.numel(), 0)]
                if part.numel():
                    found[names[parameter]] = part
            self.zero.averaged_gradients[index] = None
            self.zero.all_grad_tensors[index] = None
        self.zero.zero_grad(set_to_none=True)
        self.zero.micro_step_id = -1
        return found

    def gathered(self, *, keep: bool) -> dict[str, Any]:
        """`optimizer.state_dict()` of a plain optimizer, with whole tensors on the CPU, one at a time on the device.

        Args:
            keep: False in a process that takes part but has no use for the result, which is then empty.
        """
        state: dict[int, dict[str, Any]] = {}
        groups = []
        first = 0
        for index, group in enumerate(self.zero.optimizer.param_groups):
            places = self._places(index)
            for name, value in self.zero.optimizer.state[self._own(index)].items():
                whole = _strung_together(value) if isinstance(value, Tensor) and value.dim() else None
                for number, (parameter, begin) in enumerate(places if keep else [], start=first):
                    part = value if whole is None else whole[begin : begin + parameter.numel()].view(parameter.shape)
                    # Each its own copy: one `step` for all would count once a tensor where it is loaded.
                    state.setdefault(number, {})[name] = part.clone() if isinstance(part, Tensor) else part
            numbers = list(range(first, first + len(places)))
            groups.append({**{name: value for name, value in group.items() if name != "params"}, "params": numbers})
            first += len(places)
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load(self, saved: Mapping[str, Any]) -> None:
        """Take this process's part of what `gathered`, or a plain optimizer, gave."""
        inner = self.zero.optimizer
        for index, (group, kept) in enumerate(zip(inner.param_groups, saved["param_groups"], strict=True)):
            group.update({name: value for name, value in kept.items() if name != "params"})
            own, places = self._own(index), self._places(index)
            states = [saved["state"].get(number, {}) for number in kept["params"]]
            start = dist.get_rank() * own.numel()
            inner.state[own] = {}
            for name, example in states[0].items():
                value = example
                if isinstance(example, Tensor) and example.dim():
                    flat = torch.zeros(dist.get_world_size() * own.numel(), dtype=example.dtype)
                    for (parameter, begin), one in zip(places, states, strict=True):
                        flat[begin : begin + parameter.numel()] = one[name].flatten()
                    value = flat[start : start + own.numel()].to(own.device)
                inner.state[own][name] = value.clone() if isinstance(value, Tensor) else value

    def _own(self, index: int) -> Tensor:
        """This process's part of a group's flat tensor; all processes' parts are of one size."""
        own: Tensor = self.zero.single_partition_of_fp32_groups[index]
        return own

    def _places(self, index: int) -> list[tuple[nn.Parameter, int]]:
        """The parameters of a group, and where each begins in its flat tensor."""
        return list(zip(self.zero.bit16_groups[index], self.zero.round_robin_bit16_offsets[index], strict=True))


def _strung_together(part: Tensor) -> Tensor:
    """The parts of all processes, on the CPU."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts).cpu()
