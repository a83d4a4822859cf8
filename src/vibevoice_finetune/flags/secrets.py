"""What must never be written to a file that is kept or shared: tokens and keys on a command line."""

import re
from collections.abc import Sequence

MASK = "***"
SECRET_FLAG = re.compile(r"(token|api_key|password|secret)$")
TOKEN = re.compile(r"\bhf_\w{8,}")
"""A token of the Hugging Face Hub, wherever it stands."""


def is_secret(name: str) -> bool:
    """Whether a flag's value is a secret, known or misspelled: `hub_token`, `push_to_hub_token`, `wandb_api_key`."""
    return SECRET_FLAG.search(name.lstrip("-").replace("-", "_").lower()) is not None


def masked(words: Sequence[str]) -> list[str]:
    """A command line without its secrets.

    >>> masked(["--hub_token", "abc", "--hub-token=abc", "--lora_r", "8"])
    ['--hub_token', '***', '--hub-token=***', '--lora_r', '8']
    """
    found: list[str] = []
    hides_next = False
    for word in words:
        is_flag = word.startswith("-")
        name, equals, _ = word.partition("=")
        if is_flag and is_secret(name):
            found.append(f"{name}={MASK}" if equals else word)
        else:
            found.append(MASK if hides_next and not is_flag else TOKEN.sub(MASK, word))
        hides_next = is_flag and is_secret(name) and not equals
    return found
