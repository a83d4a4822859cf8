"""`train` with a fault put in: ``python -m tests.distributed.failing FAULT train …``, meant for torchrun.

Faults: "step" (the second process raises in its third micro-batch), "save" (the first finds the disk full), "gradient"
(in the second step, the second process's gradient of the first trained tensor is infinite).
"""

import errno
import math
import os
import sys
from pathlib import Path

from vibevoice_finetune.commands.table import main, program
from vibevoice_finetune.training.trainer import FinetuneTrainer


def put_in(fault: str) -> None:
    rank = int(os.environ["RANK"])
    if fault == "step" and rank == 1:
        plain = FinetuneTrainer.compute_loss
        calls = iter(range(1_000_000))

        def compute_loss(self, *arguments, **named):
            if next(calls) == 2:
                raise RuntimeError("a fault of the second process")
            return plain(self, *arguments, **named)

        FinetuneTrainer.compute_loss = compute_loss
    if fault == "gradient" and rank == 1:
        begin = FinetuneTrainer._prepare_for_training

        def prepare_for_training(self, *arguments, **named):
            first = next(iter(self.parameters.values()))
            first.register_hook(lambda gradient: gradient * (math.inf if self.state.global_step == 1 else 1))
            return begin(self, *arguments, **named)

        FinetuneTrainer._prepare_for_training = prepare_for_training
    if fault == "save" and rank == 0:
        write = FinetuneTrainer._write_checkpoint

        def write_checkpoint(self, folder: Path):
            write(self, folder)
            if self.state.global_step > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        FinetuneTrainer._write_checkpoint = write_checkpoint


if __name__ == "__main__":
    put_in(sys.argv[1])
    program(lambda: main(sys.argv[2:]))
