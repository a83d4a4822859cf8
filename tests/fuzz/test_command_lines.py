"""Any command line gets an answer: it is carried out, or refused in one line. `make long` tries thousands."""

import random

import pytest

from tests.fuzz.command_lines import KINDS, answer, command_line, occupy
from vibevoice_finetune.commands.table import COMMANDS

LEFT_OUT = {"evaluate", "recipes", "rehearse", "tune", "web"}
"""Of the commands: those whose flags could make them work for long, whatever the model."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    occupy(tmp_path)
    return tmp_path


def test_every_command_is_tried():
    assert set(KINDS) | LEFT_OUT == {command.name for command in COMMANDS}


def test_hostile_command_lines(folder):
    rng = random.Random(1)
    tried = [command_line(rng) for _ in range(60)]
    for words in tried:
        answer(words)
    assert len({words[0] for words in tried}) > 5
