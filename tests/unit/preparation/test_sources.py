"""What people have, recognised by looking: every layout with its smallest example."""

import os
import zipfile
from pathlib import Path

import pytest

from vibevoice_finetune.errors import DataError
from vibevoice_finetune.preparation.recordings import Passage, Source
from vibevoice_finetune.preparation.sources.find import find, unpack
from vibevoice_finetune.preparation.sources.timed_text import read_timed_text

SRT = "1\n00:00:01,000 --> 00:00:02,500\n- Hello <i>there</i>.\n\n2\n00:00:03,000 --> 00:00:04,000\n♪ music ♪\n"


def lay(folder: Path, **files: str) -> Path:
    """Files by name, with `__` for a slash and `_DOT_` for the dot before a suffix."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def rows(source: Source) -> list[tuple[str, str | None, str | None]]:
    return [(recording.name, recording.speaker, recording.text) for recording in source.recordings]


def test_long_recordings_without_text(tmp_path: Path) -> None:
    source = find(
        lay(tmp_path, one_DOT_wav="", sub__two_DOT_MP3="", three_DOT_mkv="", notes_DOT_md="", _DOT_hidden_DOT_wav="")
    )
    assert source.kind == "recordings"
    assert rows(source) == [("one", None, None), ("sub/two", None, None), ("three", None, None)]
    assert source.summary() == "found: 3 long recordings, no transcripts"
    assert len({recording.group for recording in source.recordings}) == 3


def test_clips_with_their_texts(tmp_path: Path) -> None:
    folder = lay(tmp_path, a_01_DOT_wav="", a_01_DOT_txt="Hello  there.\n", a_02_DOT_wav="", a_02_DOT_lab="\ufeffYes.")
    source = find(folder)
    assert source.kind == "clips"
    assert rows(source) == [("a_01", None, "Hello  there."), ("a_02", None, "Yes.")]
    assert {recording.group for recording in source.recordings} == {"a"}, "cuts of one recording"
    assert source.summary() == "found: 2 clips, 2 with a transcript"


def test_a_clip_without_its_text_is_named_where_texts_are_wanted(tmp_path: Path) -> None:
    source = find(lay(tmp_path, a_DOT_wav="", a_DOT_txt="A.", b_DOT_wav=""), "clips")
    assert rows(source) == [("a", None, "A.")]
    assert [(ignored.where, ignored.reason) for ignored in source.ignored] == [
        (str(tmp_path / "b.wav"), "no .txt or .lab beside it")
    ]


def test_ljspeech_takes_the_text_that_is_spelt_out(tmp_path: Path) -> None:
    table = "LJ001-0001|In 1455|In fourteen fifty-five\nLJ001-0002|Two|\nLJ001-0003|gone|gone\nbroken\n"
    source = find(
        lay(tmp_path, metadata_DOT_csv=table, **{"wavs__LJ001-0001_DOT_wav": "", "wavs__LJ001-0002_DOT_wav": ""})
    )
    assert source.kind == "ljspeech"
    assert rows(source) == [("LJ001-0001", None, "In fourteen fifty-five"), ("LJ001-0002", None, "Two")]
    assert [ignored.where.rsplit(":", 1)[1] + " " + ignored.reason for ignored in source.ignored] == [
        "3 no audio file LJ001-0003",
        "4 expected id|text",
    ]
    assert len({recording.group for recording in source.recordings}) == 1, "a chapter"


def test_vctk_has_a_folder_a_speaker(tmp_path: Path) -> None:
    folder = lay(
        tmp_path,
        txt__p225__p225_001_DOT_txt="Please call.",
        txt__p226__p226_001_DOT_txt="Please call.",
        wav48_silence_trimmed__p225__p225_001_mic1_DOT_flac="",
        wav48_silence_trimmed__p225__p225_001_mic2_DOT_flac="",
        wav48_silence_trimmed__p226__p226_001_mic1_DOT_flac="",
    )
    source = find(folder)
    assert source.kind == "vctk"
    assert rows(source) == [("p225/p225_001", "p225", "Please call."), ("p226/p226_001", "p226", "Please call.")]
    assert {recording.group for recording in source.recordings} == {"001"}, "the same sentence on the same side"
    assert [ignored.reason for ignored in source.ignored] == ["another microphone of the same sentence"]
    assert source.summary() == "found: 2 clips, 2 with a transcript, 2 speakers"


def test_common_voice_keeps_a_person_together(tmp_path: Path) -> None:
    table = 'client_id\tpath\tsentence\tup_votes\nanna\tc1.mp3\tSay "yes", please.\t2\nben\tc2.mp3\tNo.\t3\n'
    source = find(lay(tmp_path, validated_DOT_tsv=table, clips__c1_DOT_mp3="", clips__c2_DOT_mp3=""))
    assert source.kind == "commonvoice"
    assert rows(source) == [("c1", "anna", 'Say "yes", please.'), ("c2", "ben", "No.")]
    assert [recording.group for recording in source.recordings] == ["anna", "ben"]


def test_tables_with_named_columns(tmp_path: Path) -> None:
    table = 'file,Transcript,speaker\na.wav,"Well, hello.",anna\nnone.wav,Hm.,anna\n'
    source = find(lay(tmp_path, list_DOT_csv=table, a_DOT_wav="") / "list.csv")
    assert rows(source) == [("a", "anna", "Well, hello.")]
    assert source.ignored[0].where.endswith("list.csv:3")
    own = find(lay(tmp_path, own_DOT_csv="x;y\na.wav;Hello.\n") / "own.csv", columns={"audio": "x", "text": "y"})
    assert rows(own) == [("a", None, "Hello.")]
    with pytest.raises(
        DataError, match=r"own.csv: no column is called audio, .*; it has x, y; name it with --audio_col"
    ):
        find(tmp_path / "own.csv", "table")
    with pytest.raises(DataError, match=r"own.csv: has no column 'z'; it has x, y"):
        find(tmp_path / "own.csv", columns={"audio": "x", "text": "z"})


def test_lists_of_other_trainers(tmp_path: Path) -> None:
    folder = lay(
        tmp_path,
        wavs__a_DOT_wav="",
        sovits_DOT_list="wavs/a.wav|anna|EN|One | two.\n",
        f5_DOT_csv="audio_file|text\nwavs/a.wav|One.\n",
    )
    sovits, f5 = find(folder / "sovits.list"), find(folder / "f5.csv")
    assert (sovits.kind, rows(sovits)) == ("gptsovits", [("wavs/a", "anna", "One | two.")])
    assert (f5.kind, rows(f5)) == ("f5", [("wavs/a", None, "One.")])


def test_names_fit_every_file_system_and_differ(tmp_path: Path) -> None:
    for name in ("a b.wav", "a?b.wav", "A_B.wav", "ünïcode.wav", "..wav"):
        (tmp_path / name).touch()
    names = [recording.name for recording in find(tmp_path).recordings]
    assert len({name.casefold() for name in names}) == len(names) == 4
    assert all(name.isascii() for name in names)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    lay(tmp_path, out__secret_DOT_wav="", data__a_DOT_wav="")
    (tmp_path / "data" / "b.wav").symlink_to(tmp_path / "out" / "secret.wav")
    assert [recording.name for recording in find(tmp_path / "data").recordings] == ["a"]


def test_a_name_that_no_list_can_hold_is_said(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"caf\\udce9\.wav: the name is not UTF-8"):
        find(tmp_path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        find(tmp_path / "none")
    with pytest.raises(DataError, match=r"no audio was found; audio ends in .wav, .flac"):
        find(lay(tmp_path, readme_DOT_txt="x"))
    with pytest.raises(DataError, match="--format ljspeech needs one table, 0 were found"):
        find(tmp_path, "ljspeech")


def test_a_zip_is_unpacked_inside_its_place(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("set/metadata.csv", "x|Hello.\n")
        archive.writestr("set/wavs/x.wav", "")
    place = unpack(tmp_path / "a.zip", tmp_path / "in")
    assert rows(find(place)) == [("x", None, "Hello.")]
    (place / "mark").touch()
    assert (unpack(tmp_path / "a.zip", tmp_path / "in") / "mark").exists(), "the same zip is not unpacked again"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("y.wav", "")
    assert rows(find(unpack(tmp_path / "a.zip", tmp_path / "in"))) == [("y", None, None)]
    assert not place.exists()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.wav", "")
    with pytest.raises(DataError, match=r"\.\./evil\.wav leads out of the archive"):
        unpack(tmp_path / "evil.zip", tmp_path / "out")
    assert not (tmp_path / "evil.wav").exists()
    (tmp_path / "no.zip").write_text("no")
    with pytest.raises(DataError, match=r"no\.zip: cannot be unpacked"):
        unpack(tmp_path / "no.zip", tmp_path / "out")


def test_subtitles_lose_what_is_no_speech(tmp_path: Path) -> None:
    source = find(lay(tmp_path, film_DOT_mp4="", film_DOT_srt=SRT))
    assert source.kind == "subtitles"
    assert source.recordings[0].passages == (Passage(1.0, 2.5, "Hello there."),)
    assert source.summary() == "found: 1 long recording, 1 with timed text"


def test_speakers_stand_before_a_colon_or_in_a_voice_tag(tmp_path: Path) -> None:
    vtt = "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Anna>Come in.\n\n00:03.000 --> 00:04.000\nBEN: Thank you: all.\n"
    (tmp_path / "a.vtt").write_text(vtt)
    assert [(p.speaker, p.text) for p in read_timed_text(tmp_path / "a.vtt")] == [
        ("Anna", "Come in."),
        ("BEN", "Thank you: all."),
    ]


def test_labels_of_audacity(tmp_path: Path) -> None:
    (tmp_path / "a.labels.txt").write_text("0.5\t2.25\tHello.\n\\\t100\t200\n3,5\t4,0\tYes.\n9\t9\tmark\n")
    assert read_timed_text(tmp_path / "a.labels.txt") == [Passage(0.5, 2.25, "Hello."), Passage(3.5, 4.0, "Yes.")]
    (tmp_path / "b.labels.txt").write_text("0.5 2.25 Hello.\n")
    with pytest.raises(DataError, match=r"b.labels.txt:1: expected start, end and text between tabs"):
        read_timed_text(tmp_path / "b.labels.txt")


TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 5.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "Anna 2"
        xmin = 0
        xmax = 5.5
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 2.5
            text = "She said ""hi""."
        intervals [2]:
            xmin = 2.5
            xmax = 5.5
            text = ""
    item [2]:
        class = "IntervalTier"
        name = "Ben"
        xmin = 0
        xmax = 5.5
        intervals: size = 1
        intervals [1]:
            xmin = 3
            xmax = 5
            text = "In 1999."
    item [3]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 5.5
        points: size = 1
        points [1]:
            number = 1.5
            mark = "click"
"""
SHORT = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n5.5\n<exists>\n1\n"IntervalTier"\n"Anna"\n0\n5.5\n1\n'
    '0\n2.5\n"She said ""hi""."\n'
)


def test_textgrids_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "long.TextGrid").write_text(TEXTGRID)
    assert read_timed_text(tmp_path / "long.TextGrid") == [
        Passage(0.0, 2.5, 'She said "hi".', "Anna 2"),
        Passage(3.0, 5.0, "In 1999.", "Ben"),
    ]
    (tmp_path / "short.TextGrid").write_text(SHORT, encoding="utf-16")
    assert read_timed_text(tmp_path / "short.TextGrid") == [Passage(0.0, 2.5, 'She said "hi".')]
    for cut in (0, 20, 100, 300, len(TEXTGRID) - 150):
        (tmp_path / "cut.TextGrid").write_text(TEXTGRID[:cut])
        with pytest.raises(DataError, match=r"is not a TextGrid|ends in the middle"):
            read_timed_text(tmp_path / "cut.TextGrid")


def test_empty_subtitles_are_said(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("")
    with pytest.raises(DataError, match=r"a\.srt: (holds no text with times|cannot be read as subtitles)"):
        read_timed_text(tmp_path / "a.srt")
    (tmp_path / "b.srt").write_bytes(b"\xe4\xf6\xfc")
    with pytest.raises(DataError, match=r"b\.srt: is not UTF-8"):
        read_timed_text(tmp_path / "b.srt")
