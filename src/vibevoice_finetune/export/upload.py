"""The result of a run on the Hub, if `--push_to_hub` asks for it: `lora/` or `model/`, and nothing else.

Why: transformers' Trainer would push the output folder as it trains, optimizer states and local paths included, and
with a model card that knows nothing of VibeVoice. So the request is taken out of its hands before it is built, and
fulfilled once, at the end, with the folder that other people can use.

In: the arguments of the training loop and the finished folder. Out: the address of what was uploaded.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its HTTP client, whichever it uses
from transformers import TrainingArguments

from vibevoice_finetune.adapters.info import INFO_FILE
from vibevoice_finetune.errors import ArgumentError, UserError, shown
from vibevoice_finetune.export.whole_model import RECORD_FILE


@dataclass(frozen=True)
class Upload:
    """What `--push_to_hub` and its companions ask for.

    Attributes:
        repo_id: the repository, as in `me/my-voice`; without an owner, the token's owner.
        private: whether a new repository is private; None for the owner's default.
        revision: the branch; None for the main one.
        token: None for the one that `hf auth login` left. Kept out of what is printed.
    """

    repo_id: str
    private: bool | None
    revision: str | None
    token: str | None = field(repr=False)


def take_upload(loop: TrainingArguments) -> Upload | None:
    """Take the request to push out of the Trainer's arguments, so that the Trainer does not push on its own.

    To be called before the Trainer is built: it makes the repository as soon as it is.

    Returns:
        The request; None if there is none.

    Raises:
        ArgumentError: there is no token to push with; better said before the run than after it.
    """
    if not loop.push_to_hub:
        return None
    if loop.hub_token is None and get_token() is None:
        raise ArgumentError("--push_to_hub: no token to upload with; run: hf auth login (or set HF_TOKEN)")
    loop.push_to_hub = False
    repo_id = loop.hub_model_id or Path(str(loop.output_dir)).resolve().name
    return Upload(repo_id, loop.hub_private_repo, loop.hub_revision, loop.hub_token)


def push_result(folder: Path, upload: Upload) -> str:
    """Upload a finished result in one commit; what the repository holds beside it stays.

    Args:
        folder: `lora/` or `model/`, complete.
        upload: the repository.

    Returns:
        The address of the commit.

    Raises:
        ArgumentError: the name of the repository is not valid, or the folder is not a finished result.
        UserError: the Hub cannot be reached, or refuses. The result is on the disk all the same, and the message says
            how to upload it.
    """
    if not any((folder / name).is_file() for name in (INFO_FILE, RECORD_FILE)):
        raise ArgumentError(f"{folder}: holds no finished result ({INFO_FILE} is missing); nothing was uploaded")
    api = HfApi(token=upload.token)
    try:
        repository = api.create_repo(upload.repo_id, private=upload.private, exist_ok=True).repo_id
        if upload.revision is not None:
            api.create_branch(repository, branch=upload.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=upload.revision,
            commit_message="Upload adapter made with vibevoice-finetune",
        )
    except HFValidationError as error:
        raise ArgumentError(
            f"--hub_model_id {shown(upload.repo_id)}: is not the name of a repository; give OWNER/NAME"
        ) from error
    except (LocalTokenNotFoundError, httpx.HTTPError, OSError) as error:
        raise UserError(_refusal(folder, upload, error)) from error
    return str(commit.commit_url)


def _refusal(folder: Path, upload: Upload, error: Exception) -> str:
    """What to say when the upload failed; the server's words may echo the request, so the token is struck out."""
    words = " ".join(str(error).split())
    if upload.token:
        words = words.replace(upload.token, "…")
    login = "" if upload.token else " (first: hf auth login)"
    return (
        f"{folder}: the result is complete on the disk, but could not be uploaded to {upload.repo_id} "
        f"({type(error).__name__}: {words[:300]}); where there is a connection, run{login}: "
        f"hf upload {upload.repo_id} {shlex.quote(str(folder))} ."
    )
