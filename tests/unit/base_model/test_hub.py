"""Names that stand for a folder or a repository, and what is said of those that stand for nothing."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vibevoice_finetune.base_model.hub import SETTINGS, locate
from vibevoice_finetune.errors import BaseModelError


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A repository's place in the Hub's cache, with two snapshots of which one is current."""
    folder = tmp_path / "models--microsoft--VibeVoice-1.5B"
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40)
    return folder


def test_a_folder_of_the_cache_means_its_current_snapshot(cached: Path) -> None:
    assert locate(str(cached), SETTINGS, None) == (cached / "snapshots" / ("b" * 40), None)


def test_without_a_reference_the_only_snapshot_is_taken(cached: Path) -> None:
    (cached / "refs" / "main").unlink()
    with pytest.raises(BaseModelError, match=rf"with 2 snapshots; give the one to use: .*{'a' * 40}, {'b' * 40}$"):
        locate(str(cached), SETTINGS, None)
    (cached / "snapshots" / ("a" * 40)).rmdir()
    assert locate(str(cached), SETTINGS, None)[0].name == "b" * 40
    (cached / "snapshots" / ("b" * 40)).rmdir()
    with pytest.raises(BaseModelError, match="with 0 snapshots"):
        locate(str(cached), SETTINGS, None)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("https://huggingface.co/microsoft/VibeVoice-1.5B", "microsoft/VibeVoice-1.5B"),
        ("https://huggingface.co/somebody/voice/tree/main", "somebody/voice"),
        ("VibeVoice-1.5B", "microsoft/VibeVoice-1.5B"),
        ("microsoft/vibevoice-1.5b", "microsoft/VibeVoice-1.5B"),
        ("VibeVoice-Large", "aoi-ot/VibeVoice-Large"),
        ("microsoft\\VibeVoice-1.5B", "microsoft/VibeVoice-1.5B"),
        (" somebody/voice/", "somebody/voice"),
    ],
)
def test_a_repository_that_was_probably_meant(tmp_path: Path, typed: str, meant: str) -> None:
    with pytest.raises(BaseModelError) as refused:
        locate(typed, SETTINGS, tmp_path)
    assert f"no such folder (did you mean {meant}?)" in str(refused.value)


def test_a_folder_that_was_probably_meant(tmp_path: Path) -> None:
    folder = tmp_path / "My Zoë"
    folder.mkdir()
    for typed in (f"{tmp_path}/my zoe\u0308", f"{tmp_path}/My Zoe\u0308/", f"file://{tmp_path}/My%20Zo%C3%AB"):
        with pytest.raises(BaseModelError) as refused:
            locate(typed, SETTINGS, None)
        assert f"(did you mean {folder}?)" in str(refused.value)


@pytest.mark.parametrize(
    "typed", ["", " ", "a\x00b", "\ud800", "x" * 5000, "/" + "y" * 300, "~nobody-of-this-name/model", "a/b/c"]
)
def test_names_of_nothing_are_one_line(typed: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError) as refused:
        locate(typed, SETTINGS, tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may read everything
    with pytest.raises(BaseModelError, match=f"{tmp_path}: the folder may not be read; check its permissions"):
        locate(str(tmp_path), SETTINGS, None)


def test_a_file_of_a_model_names_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BaseModelError, match=rf"is a file; give the folder that it is in \({tmp_path}\)"):
        locate(str(tmp_path / "model.safetensors"), SETTINGS, None)


def test_offline_it_says_so_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError) as refused:
        locate("somebody/voice", SETTINGS, tmp_path)
    assert str(refused.value) == (
        "somebody/voice: no such folder; as a repository, its model is not complete in the cache, and downloads are "
        "switched off (HF_HUB_OFFLINE); where there is a connection, run: hf download somebody/voice"
    )


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """A server that accepts connections and never answers; its address."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    held.append(server.accept()[0])
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in held:
            connection.close()
        server.shutdown(socket.SHUT_RDWR)


def test_a_hub_that_never_answers_is_given_up_on(silent_hub: str, tmp_path: Path) -> None:
    """In a process of its own, because the Hub's client reads its settings once, at import."""
    program = (
        "import sys; from pathlib import Path; from vibevoice_finetune.base_model.hub import SETTINGS, locate\n"
        "from vibevoice_finetune.errors import BaseModelError\n"
        "try: locate('somebody/voice', SETTINGS, Path(sys.argv[1]))\n"
        "except BaseModelError as error: print(error)"
    )
    settings = {"HF_ENDPOINT": silent_hub, "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_OFFLINE": "0"}
    started_sec = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "the Hub did not answer within 1 s; where there is a connection, run: hf download" in done.stdout
    assert time.monotonic() - started_sec < 20
