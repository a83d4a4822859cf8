"""The consoles on which runs talk to their user."""

from rich.console import Console


def make_console(*, quiet: bool = False) -> Console:
    """A console on stderr that prints text as it is: paths and rows may hold what rich would take for its markup.

    Long lines are left to the terminal, so that a path in a log file stays in one piece.

    Args:
        quiet: print nothing, as all but the first of several processes.
    """
    return Console(stderr=True, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True)
