"""What the tabs share: the workspace, the chosen project, and errors as sentences on the page."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from vibevoice_finetune.errors import UserError, require
from vibevoice_finetune.web.workspace import Project, Workspace

Result = TypeVar("Result")


def gradio() -> Any:
    """The library that draws the page.

    Raises:
        UserError: it is not installed.
    """
    return require("web", "gradio")


@dataclass(frozen=True)
class View:
    """What a tab is given.

    Attributes:
        workspace: with all projects.
        choice: the component that holds the chosen project's name.
        status: the line that says what is going on.
        tick: fires every two seconds.
        seen: changes when a job has begun or ended.
    """

    workspace: Workspace
    choice: Any
    status: Any
    tick: Any
    seen: Any

    def project(self, name: str | None) -> Project:
        """The chosen project.

        Raises:
            UserError: none is chosen, or it is gone.
        """
        if not name:
            raise UserError("Make a project first: write a name at the top and press “Create the project”.")
        return self.workspace.project(name)


def said_on_page(function: Callable[..., Result]) -> Callable[..., Result]:
    """A handler whose `UserError`s appear on the page instead of in the server's log."""

    @functools.wraps(function)
    def wrapped(*values: Any) -> Result:
        try:
            return function(*values)
        except UserError as error:
            raise gradio().Error(str(error), duration=15, print_exception=False) from error

    return wrapped
