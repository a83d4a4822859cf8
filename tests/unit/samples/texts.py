"""Texts, a speaker that only notes what it is asked, and a plan of both."""

from pathlib import Path

import numpy as np
import torch

from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.generation.generate import Speech
from vibevoice_finetune.generation.scripts import Script
from vibevoice_finetune.latents.processes import Processes
from vibevoice_finetune.samples.figures import TakeFigures
from vibevoice_finetune.samples.samples import SamplePlan, Samples
from vibevoice_finetune.samples.script import SampleText

WEIGHTS = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
MOVED = {"a": torch.tensor([0.0, 0.0, 1e-45]), "b": torch.ones(2, 2)}  # by the smallest step that there is


def text(line: str, where: str = "script") -> SampleText:
    return SampleText(Script(parse_script(line, where), (), where))


TEXTS = (text("Speaker 0: One."), text("Speaker 0: And two."))


class NotingSpeaker:
    """Says half a second of a tone for each text; after `stop_after` of them it is killed."""

    def __init__(self, stop_after: int = 99, error: Exception | None = None) -> None:
        self.asked: list[list[str]] = []
        self.stop_after = stop_after
        self.error = error

    def say(self, texts, limit_sec, on_speech):
        self.asked.append([one.text for one in texts])
        assert limit_sec >= 5
        for number in range(len(texts)):
            if self.stop_after == 0:
                raise self.error or KeyboardInterrupt
            self.stop_after -= 1
            on_speech(number, Speech(tone(), 4, ended=True, decisions=()))


def tone(hz: float = 440.0, seconds: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(24_000 * seconds)) / 24_000)).astype(np.float32)


def samples(folder: Path, speaker: NotingSpeaker, texts=TEXTS, judges=None, judged_by=(), processes=None) -> Samples:
    return Samples(folder, SamplePlan(texts, judges, judged_by), speaker, "base", processes or Processes())


class FixedJudges:
    """Finds the same of every sample."""

    def __init__(self, figures: TakeFigures) -> None:
        self.figures = figures

    def judge(self, number, text, samples, *, ended):
        return self.figures
