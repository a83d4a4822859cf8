"""Where a model's files lie: a local folder, the Hub's cache after a download, or, for `small`, the package itself.

Why: a name given on the command line may be either, and every way in which it can be wrong or a download can fail has
to become one line that says what to do. In: what the user typed. Out: a folder.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

import vibevoice_finetune
from vibevoice_finetune.errors import BaseModelError
from vibevoice_finetune.files.names import near_miss

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/([\w.-]+/[\w.-]+)")
SMALL = "small"
"""The name of the model that comes with the package: 12 million parameters, 87 English words."""

SMALL_FOLDER = Path(vibevoice_finetune.__file__).parent / "small_model"
_PUBLISHED = ("microsoft/VibeVoice-1.5B", "aoi-ot/VibeVoice-Large", SMALL)


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

    A folder of the user's own named `small` comes before the model of that name.

    Args:
        name_or_path: a folder, a repository of the Hub, or `small`.
        wanted: what is looked for.
        cache_dir: where downloads are kept; None for the Hub's own place.

    Returns:
        The folder, and the repository if it was one.

    Raises:
        BaseModelError: there is no such folder and no such repository, or it cannot be downloaded.
    """
    if not name_or_path.strip():
        raise BaseModelError(f"the name of the {wanted.what} is empty; expected its folder, or a repository of the Hub")
    with _explaining_bad_paths(name_or_path):
        path = Path(name_or_path).expanduser()
        if path.is_dir():
            if not os.access(path, os.R_OK | os.X_OK):
                raise BaseModelError(f"{name_or_path}: the folder may not be read; check its permissions")
            return _snapshot(path), None
        if path.is_file():
            raise BaseModelError(
                f"{name_or_path}: is a file; give the folder that it is in ({path.parent}), or a repository of the Hub"
            )
    if name_or_path == SMALL:
        return SMALL_FOLDER, None
    if not _REPO_ID.fullmatch(name_or_path):
        raise BaseModelError(
            f"{name_or_path}: no such folder{_hint(name_or_path)}; expected the folder of a {wanted.what}, or a "
            "repository of the Hub"
        )
    folder = download(name_or_path, wanted, None, cache_dir)
    return folder, Repository(repo_id=name_or_path, revision=folder.name, cache_dir=cache_dir)


def download(repo_id: str, wanted: Wanted, revision: str | None, cache_dir: Path | None) -> Path:
    """Download a repository's files, or find them in the cache; the folder they lie in.

    A Hub that does not answer within `HF_HUB_ETAG_TIMEOUT` seconds (10 by default) counts as out of reach.

    Raises:
        BaseModelError: the repository does not exist, may not be read, or cannot be reached and is not in the cache.
    """
    _limit_waiting()
    try:
        return Path(
            snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, allow_patterns=list(wanted.patterns))
        )
    except HFValidationError as error:
        raise BaseModelError(
            f"{repo_id}: no such folder, and not a valid name of a Hub repository{_hint(repo_id)}"
        ) from error
    except GatedRepoError as error:
        raise BaseModelError(
            f"{repo_id}: its terms must be accepted first; visit https://huggingface.co/{repo_id}, then run: "
            "hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"{repo_id}: no such folder, and no such repository on the Hub{_hint(repo_id)} "
            "(if it is private, run: hf auth login)"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise BaseModelError(
            f"{repo_id}: no such folder{_hint(repo_id)}; as a repository, its {wanted.what} is not complete in the "
            f"cache, and {_trouble(error)}; where there is a connection, run: {wanted.command.format(repo_id)}"
        ) from error


def _snapshot(folder: Path) -> Path:
    """The folder itself, or, of a repository's place in the Hub's cache, the snapshot that was downloaded last."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or (folder / "config.json").is_file():
        return folder
    reference = folder / "refs" / "main"
    if reference.is_file():
        current = snapshots / reference.read_text(encoding="utf-8", errors="replace").strip()
        if current.is_dir() and current != snapshots:
            return current
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.name for path in found[:5]) or "none"
    raise BaseModelError(
        f"{folder}: is a folder of the Hub's cache with {len(found)} snapshots; give the one to use: "
        f"{snapshots}/NAME with one of these names: {listed}"
    )


def _trouble(error: Exception) -> str:
    """Why the Hub did not help, without the three addresses that its own message holds."""
    if constants.HF_HUB_OFFLINE:
        return "downloads are switched off (HF_HUB_OFFLINE)"
    causes = [type(error).__name__]
    cause: BaseException | None = error.__cause__
    while cause is not None and len(causes) < 5:
        causes.append(type(cause).__name__)
        cause = cause.__cause__
    if any("Timeout" in name for name in causes):
        return f"the Hub did not answer within {constants.HF_HUB_ETAG_TIMEOUT} s"
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be stored there ({error.strerror}; choose another place with --cache_dir)"
    return f"the Hub cannot be reached ({causes[-1]})"


def _hint(name: str) -> str:
    """A name that was probably meant, in parentheses."""
    tidy = name.strip().strip("/").replace("\\", "/")
    found = near_miss(name)
    address = _HUB_ADDRESS.match(name)
    folded = tidy.casefold()
    published = [known for known in _PUBLISHED if folded in (known.casefold(), known.split("/")[-1].casefold())]
    meant = ""
    if found is not None:
        meant = str(found)
    elif address is not None:
        meant = address[1]
    elif published:
        meant = published[0]
    elif tidy.count("/") == 1 and _REPO_ID.fullmatch(tidy):
        meant = tidy
    return f" (did you mean {meant}?)" if meant not in ("", name) else ""


@contextmanager
def _explaining_bad_paths(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BaseModelError(f"{name[:200]}: cannot be looked up ({error.strerror}); check the name") from error
    except (ValueError, RuntimeError) as error:  # a NUL byte or a lone surrogate; a ~name without a home
        raise BaseModelError(f"{ascii(name[:200])[1:-1]}: is not the name of a folder ({error})") from error


def _limit_waiting() -> None:
    """Give up on a Hub that accepts a connection and then says nothing: its client waits for ever (2.4)."""
    hooks = get_session().event_hooks["request"]
    if _limit not in hooks:
        hooks.append(_limit)


def _limit(request: Any) -> None:
    if request.method in ("GET", "HEAD"):  # an upload may take its time
        given = request.extensions.get("timeout", {})
        seconds = float(constants.HF_HUB_ETAG_TIMEOUT)
        request.extensions["timeout"] = {
            kind: seconds if given.get(kind) is None else given[kind] for kind in ("connect", "read", "write", "pool")
        }
