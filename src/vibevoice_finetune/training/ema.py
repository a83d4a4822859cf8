"""An exponential moving average of the trained weights, kept in float32.

In bf16 an average with decay 0.999 stops moving at 3 % of the way, because each update is smaller than a rounding step;
in float32 it follows.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vibevoice_finetune.objective.sharding import put


class Ema:
    """The average of a set of parameters.

    Args:
        parameters: the trained parameters by name, float32.
        decay: weight of the old average in an update, once warm.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.restart()

    def restart(self) -> None:
        """Begin at the parameters as they are now."""
        self.num_updates = 0
        self.average = {name: parameter.detach().clone().float() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters.

        The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the average does not keep the
        starting values for long.
        """
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context, the parameters hold the average; afterwards what they held before, bit for bit."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        try:
            self._copy_in(self.average)
            yield
        finally:
            self._copy_in(kept)

    @torch.no_grad()
    def _copy_in(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name, and the number of updates."""
        return {**self.average, NUM_UPDATES: torch.tensor(self.num_updates)}

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError if the average is of other parameters."""
        shapes = {name: value.shape for name, value in state.items() if name != NUM_UPDATES}
        if NUM_UPDATES not in state or shapes != {name: value.shape for name, value in self.average.items()}:
            raise ValueError("it is the average of other tensors")

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave and `check` accepts."""
        self.num_updates = int(state[NUM_UPDATES])
        for name, average in self.average.items():
            put(average, state[name])


NUM_UPDATES = "ema.num_updates"
