"""Projects in a workspace folder: what the page may read and write, and nothing else.

    WORKSPACE/
      PROJECT/
        recordings/    what was uploaded
        data/ run/ …   as `tune` lays them out: a project may be opened with either
        jobs/          what is running, and what the last runs came to
        takes/         what was said on the page

Every name that comes from a browser goes through `Workspace.project` or `inside`.
"""

import re
import shutil
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vibevoice_finetune.errors import UserError, shown
from vibevoice_finetune.files.atomic import writing_file
from vibevoice_finetune.preparation.sources.find import TABLE_SUFFIXES, TEXT_SUFFIXES
from vibevoice_finetune.preparation.sources.tables import MEDIA_SUFFIXES
from vibevoice_finetune.preparation.sources.timed_text import TIMED_SUFFIXES

RECORDINGS = "recordings"
LONGEST_NAME = 60
ACCEPTED_SUFFIXES = (*MEDIA_SUFFIXES, *TEXT_SUFFIXES, *TABLE_SUFFIXES, *TIMED_SUFFIXES)

_NOT_IN_NAMES = re.compile(r"[^\w .()\-]+")


class WorkspaceError(UserError):
    """A name or a file that the page does not take."""


@dataclass(frozen=True)
class Project:
    """One voice.

    Attributes:
        folder: where everything about it lies.
    """

    folder: Path

    @property
    def name(self) -> str:
        """As the user called it."""
        return self.folder.name

    @property
    def recordings(self) -> Path:
        """The folder of uploads."""
        return self.folder / RECORDINGS

    @property
    def run(self) -> Path:
        """The folder of the newest training."""
        runs = [path for path in self.folder.glob("run-*") if path.is_dir() and path.name[4:].isdecimal()]
        newest = max(runs, key=lambda path: int(path.name[4:]), default=None)
        return newest or self.folder / "run"


@dataclass(frozen=True)
class Upload:
    """What became of an uploaded file.

    Attributes:
        name: as the browser named it.
        refused: why it was not taken; None if it was.
    """

    name: str
    refused: str | None = None


class Workspace:
    """The folder with all projects.

    Args:
        root: made if it is not there.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()

    def names(self) -> list[str]:
        """All projects, the one that was worked on last first."""
        found = [path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]

    def create(self, name: str) -> Project:
        """Make a project.

        Raises:
            WorkspaceError: the name cannot be that of a folder, or is taken.
        """
        project = Project(self._folder(name))
        if project.folder.exists():
            raise WorkspaceError(f"There is a project called {shown(name)} already; choose another name.")
        project.recordings.mkdir(parents=True)
        return project

    def project(self, name: str) -> Project:
        """A project by its name.

        Raises:
            WorkspaceError: there is none.
        """
        folder = self._folder(name)
        if not folder.is_dir():
            raise WorkspaceError(f"There is no project called {shown(name)}.")
        return Project(folder)

    def inside(self, path: str | Path) -> Path:
        """A path that was checked to lie in the workspace, links followed.

        Raises:
            WorkspaceError: it leads out.
        """
        found = (self.root / path).resolve()
        if not found.is_relative_to(self.root):
            raise WorkspaceError(f"{shown(path)} lies outside the workspace.")
        return found

    def _folder(self, name: str) -> Path:
        text = unicodedata.normalize("NFC", str(name)).strip()
        if not text or len(text) > LONGEST_NAME or text[0] in ".-" or _NOT_IN_NAMES.search(text):
            raise WorkspaceError(
                f"A project is called by letters, digits, spaces, - and _, at most {LONGEST_NAME}; not {shown(name)!r}."
            )
        return self.inside(text)


def add_recordings(project: Project, files: Iterable[str | Path]) -> list[Upload]:
    """Copy uploaded files to a project's recordings.

    Args:
        project: that gets them.
        files: where the server has put them; only the last part of each path is kept, and only what is harmless of it.
    """
    return [_add(project, Path(file)) for file in files]


def _add(project: Project, file: Path) -> Upload:
    name = safe_name(file.name)
    suffix = Path(name).suffix.lower()
    if suffix == ".zip":
        return Upload(name, "unpack it first, and upload what is inside")
    if suffix not in ACCEPTED_SUFFIXES:
        return Upload(name, f"neither audio, video nor text ({suffix or 'no ending'})")
    if file.stat().st_size == 0:
        return Upload(name, "is empty")
    target = project.recordings / name
    if target.exists() and target.read_bytes() == file.read_bytes():
        return Upload(name)
    if target.exists():
        return Upload(name, "another file of this name is there already; rename it")
    with writing_file(target) as staging:
        shutil.copyfile(file, staging)
    return Upload(name)


def safe_name(name: str) -> str:
    r"""A file's name as it may be used here: its last part, without what has a meaning in paths.

    >>> safe_name("../../etc/pass wd.wav"), safe_name("C:\\a\\b.wav"), safe_name(".hidden.wav")
    ('pass wd.wav', 'b.wav', 'hidden.wav')
    """
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    kept = _NOT_IN_NAMES.sub("_", last).lstrip(". ")
    stem, dot, suffix = kept.rpartition(".")
    return f"{stem[:100]}{dot}{suffix[:10]}" or "file"


def recordings_of(project: Project) -> list[Path]:
    """The files of a project's recordings, by name."""
    if not project.recordings.is_dir():
        return []
    return sorted(path for path in project.recordings.rglob("*") if path.is_file() and not path.name.startswith("."))
