from pathlib import Path

import pytest

from vibevoice_finetune.web.workspace import (
    Project,
    Workspace,
    WorkspaceError,
    add_recordings,
    recordings_of,
    safe_name,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "voices")


def test_projects_are_folders(workspace: Workspace) -> None:
    project = workspace.create("Anna 2")
    assert project.folder == workspace.root / "Anna 2"
    assert workspace.names() == ["Anna 2"]
    assert workspace.project("Anna 2").recordings.is_dir()


def test_letters_of_every_script_make_a_name(workspace: Workspace) -> None:
    assert workspace.create("Zoë 声").name == "Zoë 声"


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "-rf", "a\x00b", "a\nb", "x" * 61, "~", "a;b"],
)
def test_a_name_cannot_lead_elsewhere(workspace: Workspace, name: str) -> None:
    with pytest.raises(WorkspaceError):
        workspace.create(name)
    with pytest.raises(WorkspaceError):
        workspace.project(name)
    assert workspace.names() == []


def test_a_name_is_given_once(workspace: Workspace) -> None:
    workspace.create("anna")
    with pytest.raises(WorkspaceError, match="There is a project called anna already"):
        workspace.create("anna")


def test_a_project_that_is_gone_is_said(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="There is no project called anna"):
        workspace.project("anna")


def test_a_link_out_of_the_workspace_is_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (workspace.root / "anna").symlink_to(tmp_path / "secret")
    with pytest.raises(WorkspaceError, match="outside the workspace"):
        workspace.project("anna")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.wav", "a.wav"),
        ("../../a.wav", "a.wav"),
        ("/etc/passwd", "passwd"),
        ("C:\\x\\a.wav", "a.wav"),
        ("...", "file"),
        ("a;rm -rf.wav", "a_rm -rf.wav"),
        ("é" * 300 + ".flac", "é" * 100 + ".flac"),
    ],
)
def test_names_of_files_become_harmless(name: str, kept: str) -> None:
    assert safe_name(name) == kept


def upload(folder: Path, name: str, content: bytes = b"RIFF") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes(content)
    return path


def test_recordings_and_texts_are_taken_and_the_rest_refused_with_a_reason(
    workspace: Workspace, tmp_path: Path
) -> None:
    project = workspace.create("anna")
    up = tmp_path / "up"
    files = [
        upload(up, "b.WAV"),
        upload(up, "a.flac"),
        upload(up, "a.txt", b"Hello."),
        upload(up, "x.pdf"),
        upload(up, "all.zip"),
        upload(up, "empty.wav", b""),
        upload(up, "noending"),
    ]
    found = {one.name: one.refused for one in add_recordings(project, files)}
    assert [path.name for path in recordings_of(project)] == ["a.flac", "a.txt", "b.WAV"]
    assert {name for name, refused in found.items() if refused} == {"x.pdf", "all.zip", "empty.wav", "noending"}
    assert found["x.pdf"] == "neither audio, video nor text (.pdf)"
    assert found["all.zip"] == "unpack it first, and upload what is inside"


def test_the_same_file_twice_is_one_and_another_of_its_name_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    project = workspace.create("anna")
    add_recordings(project, [upload(tmp_path / "1", "a.wav")])
    assert add_recordings(project, [upload(tmp_path / "2", "a.wav")])[0].refused is None
    (other,) = add_recordings(project, [upload(tmp_path / "3", "a.wav", b"else")])
    assert other.refused == "another file of this name is there already; rename it"
    assert (project.recordings / "a.wav").read_bytes() == b"RIFF"


def test_the_newest_run_counts(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert project.run == tmp_path / "run"
    for name in ("run", "run-2", "run-10", "run-x"):
        (tmp_path / name).mkdir()
    assert project.run == tmp_path / "run-10"
