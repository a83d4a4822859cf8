"""The command `web`."""

import os
from dataclasses import dataclass
from pathlib import Path

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import Range, flag

SUMMARY = "A page in the browser for everything from recordings to a voice (extra web)."
PASSWORD_VARIABLE = "VIBEVOICE_WEB_PASSWORD"
SHORTEST_PASSWORD = 8
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(kw_only=True)
class WebFlags:
    """The flags of `web`."""

    workspace: str = flag("voices", help="Folder with all projects; nothing outside it is touched.", is_path=True)
    host: str = flag("127.0.0.1", help="Address to listen at; 0.0.0.0, for other machines, needs a password.")
    port: int | None = flag(
        None,
        help="Port to listen at.",
        range=Range(at_least=1, at_most=65535),
        shown_default="the first free from 7860",
    )
    password: str | None = flag(
        None, help=f"That visitors must give; may also be in {PASSWORD_VARIABLE}.", shown_default="none"
    )

    def __post_init__(self) -> None:
        self.password = self.password or os.environ.get(PASSWORD_VARIABLE) or None
        if self.password is not None and len(self.password) < SHORTEST_PASSWORD:
            raise ArgumentError(f"--password: at least {SHORTEST_PASSWORD} letters are needed.")
        if self.host not in LOCAL and self.password is None:
            raise ArgumentError(
                f"--host {self.host}: everybody who reaches this machine could use the page; add --password."
            )


def web(words: list[str]) -> None:
    """Run `web` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, gradio is not installed, or the page cannot be served.
    """
    flags = parse_flags(WebFlags, "web", words, SUMMARY)
    from vibevoice_finetune.web.app import serve

    serve(Path(flags.workspace), flags.host, flags.port, flags.password)
