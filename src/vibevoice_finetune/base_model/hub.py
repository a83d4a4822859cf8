"""Where a model's files lie: a local folder, or the Hub's cache after a download.

Why: a name given on the command line may be either, and every way in which a download fails has to become one line that
says what to do. In: what the user typed. Out: a folder.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from vibevoice_finetune.errors import CheckpointError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at one commit.

    Attributes:
        repo_id: such as ``microsoft/VibeVoice-1.5B``.
        revision: the commit whose files are read, so that weights and configuration never come from two.
        cache_dir: where downloads are kept; None for the Hub's own place.
    """

    repo_id: str
    revision: str
    cache_dir: Path | None


@dataclass(frozen=True)
class Wanted:
    """Files to look for.

    Attributes:
        what: their name in messages.
        patterns: the files, such as ``*.json``.
        command: downloads what the user needs, where there is a connection; ``{}`` stands for the repository.
    """

    what: str
    patterns: tuple[str, ...]
    command: str


SETTINGS = Wanted("model", ("*.json", "*.txt"), "hf download {}")
WEIGHTS = Wanted("model's weights", ("*.safetensors", "*.safetensors.index.json"), "hf download {}")
TEXT_TOKENIZER = Wanted(
    "text tokenizer", ("*.json", "merges.txt"), 'hf download {} --include "*.json" --include "merges.txt"'
)


def locate(name_or_path: str, wanted: Wanted, cache_dir: Path | None) -> tuple[Path, Repository | None]:
    """Find the folder that a name stands for; of a repository, the wanted files are downloaded.

    Args:
        name_or_path: a folder, or a repository of the Hub.
        wanted: what is looked for.
        cache_dir: where downloads are kept; None for the Hub's own place.

    Returns:
        The folder, and the repository if it was one.

    Raises:
        CheckpointError: there is no such folder and no such repository, or it cannot be downloaded.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path, None
    if path.is_file():
        raise CheckpointError(
            f"{name_or_path}: is a file; expected the folder of a {wanted.what}, or a repository of the Hub"
        )
    if not _REPO_ID.fullmatch(name_or_path):
        raise CheckpointError(
            f"{name_or_path}: no such folder; expected the folder of a {wanted.what}, or a repository of the Hub"
        )
    folder = download(name_or_path, wanted, None, cache_dir)
    return folder, Repository(repo_id=name_or_path, revision=folder.name, cache_dir=cache_dir)


def download(repo_id: str, wanted: Wanted, revision: str | None, cache_dir: Path | None) -> Path:
    """Download a repository's files, or find them in the cache; the folder they lie in.

    Raises:
        CheckpointError: the repository does not exist, may not be read, or cannot be reached and is not in the cache.
    """
    try:
        return Path(
            snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, allow_patterns=list(wanted.patterns))
        )
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id}: no such folder, and no valid name of a Hub repository") from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo_id}: the Hub asks to accept this repository's terms first; visit its page, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo_id}: no such folder, and no such repository on the Hub (or it is private; then run: hf auth login)"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repo_id}: no such folder, and the Hub cannot be reached for the {wanted.what} ({type(error).__name__}), "
            f"nor is it in the cache; where there is a connection, run: {wanted.command.format(repo_id)}"
        ) from error
