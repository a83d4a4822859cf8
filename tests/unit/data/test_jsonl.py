import io
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from vibevoice_finetune.audio.source import load_audio
from vibevoice_finetune.data import hf_datasets, jsonl
from vibevoice_finetune.data.hf_datasets import cells
from vibevoice_finetune.data.jsonl import BadRows, Columns, Row, read_dataset, read_jsonl, split_off
from vibevoice_finetune.data.rows import make_row
from vibevoice_finetune.errors import ArgumentError, DataError

TONE = (0.3 * np.sin(np.arange(4_800) / 10)).astype(np.float32)
OTHER = (0.3 * np.sin(np.arange(9_600) / 5)).astype(np.float32)


def wav(samples: np.ndarray = TONE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 24_000, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(wav())
    (tmp_path / "clips" / "b.wav").write_bytes(wav(OTHER))
    return tmp_path


def good(**values: object) -> dict[str, object]:
    return {"text": "Speaker 0: Hello.", "audio": "clips/a.wav", **values}


def write(folder: Path, *rows: Mapping[str, object] | str | bytes) -> Path:
    path = folder / "train.jsonl"
    lines = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n")
    return path


def read(folder: Path, *rows: Mapping[str, object] | str | bytes, columns: Columns | None = None) -> list[Row]:
    return read_jsonl(write(folder, *rows), columns or Columns(), BadRows("error"))


def texts(rows: Sequence[Row]) -> list[str]:
    return [row.text for row in rows]


class TestJsonl:
    def test_a_row(self, folder: Path) -> None:
        [row] = read(folder, good(voice_prompts=["clips/b.wav", "clips/a.wav"], speaker="ann", duration_sec=0.2))
        assert row.text == "Speaker 0: Hello."
        assert row.audio.path == folder / "clips" / "a.wav"
        assert row.voice_prompts is not None
        assert [prompt.path for prompt in row.voice_prompts] == [folder / "clips" / "b.wav", folder / "clips" / "a.wav"]
        assert (row.speaker, row.where) == ("ann", "train.jsonl:1")
        np.testing.assert_array_equal(load_audio(row.audio), TONE)

    def test_paths_start_at_the_folder_of_the_file_whatever_the_current_one(
        self, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(
            folder, good(), good(audio="../" + folder.name + "/clips/b.wav"), good(audio=str(folder / "clips/b.wav"))
        )
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert [len(load_audio(row.audio)) for row in read_jsonl(path, Columns(), BadRows("error"))] == [
            4_800,
            9_600,
            9_600,
        ]

    def test_byte_order_mark_carriage_returns_and_blank_lines(self, folder: Path) -> None:
        line = json.dumps(good()).encode()
        rows = read(folder, b"\xef\xbb\xbf" + line + b"\r", b"", b"  \t\r", line + b"\r")
        assert [row.where for row in rows] == ["train.jsonl:1", "train.jsonl:4"]

    def test_a_line_separator_inside_a_text_ends_no_line(self, folder: Path) -> None:
        line = json.dumps(good(text="Speaker 0: One\u2028two\x85three."), ensure_ascii=False)
        assert texts(read(folder, line)) == ["Speaker 0: One\u2028two\x85three."]

    def test_the_last_line_needs_no_end(self, folder: Path) -> None:
        (folder / "train.jsonl").write_text(json.dumps(good()))
        assert len(read_jsonl(folder / "train.jsonl", Columns(), BadRows("error"))) == 1

    @pytest.mark.parametrize("nothing", [None, "", [], {"array": None, "sampling_rate": None}])
    def test_no_voice_prompts(self, folder: Path, nothing: object) -> None:
        rows = read(folder, good(voice_prompts=nothing), good())
        assert [row.voice_prompts for row in rows] == [None, None]

    @pytest.mark.parametrize(
        ("value", "lengths"),
        [
            ("clips/b.wav", [9_600]),
            (["clips/b.wav"], [9_600]),
            ({"path": "clips/b.wav"}, [9_600]),
            ([{"path": "clips/b.wav"}, "clips/a.wav"], [9_600, 4_800]),
            ({"array": OTHER.tolist(), "sampling_rate": 48_000}, [4_800]),
            ([{"array": OTHER.tolist(), "sampling_rate": 48_000}], [4_800]),
            (TONE.tolist(), [4_800]),
            ([TONE.tolist(), OTHER.tolist()], [4_800, 9_600]),
            ([TONE.tolist(), TONE.tolist()], [4_800, 4_800]),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_voice_prompts_in_every_form(self, folder: Path, value: object, lengths: list[int]) -> None:
        [row] = read(folder, good(voice_prompts=value))
        assert row.voice_prompts is not None
        assert [len(load_audio(prompt)) for prompt in row.voice_prompts] == lengths

    @pytest.mark.parametrize(
        ("value", "speaker"), [(None, None), ("", None), (" ", None), (" ann ", "ann"), (17, "17")]
    )
    def test_speakers(self, folder: Path, value: object, speaker: str | None) -> None:
        assert [row.speaker for row in read(folder, good(speaker=value), good())] == [speaker, None]

    def test_other_names_of_columns(self, folder: Path) -> None:
        columns = Columns(text="line", audio="wav", voice_prompts="ref", speaker="who")
        [row] = read(
            folder, {"line": "Speaker 0: A.", "wav": "clips/a.wav", "ref": "clips/b.wav", "who": "x"}, columns=columns
        )
        assert (row.text, row.speaker) == ("Speaker 0: A.", "x")
        assert row.voice_prompts is not None

    @pytest.mark.parametrize(
        ("line", "reason", "says"),
        [
            ("{", "not JSON", "column 2"),
            ("hello", "not JSON", "expected one object per line"),
            ("[1, 2]", "not JSON", "a list, not an object"),
            ('"text"', "not JSON", "a str, not an object"),
            ("null", "not JSON", "a NoneType, not an object"),
            (b'{"text": "\xff"}', "not JSON", "byte 11 is not UTF-8"),
            ("[" * 100_000, "not JSON", "not a JSON object"),
            ('{"text": ' + "9" * 5_000 + "}", "not JSON", "not a JSON object"),
            ('{"text": "a", "text": "b", "audio": "clips/a.wav"}', "duplicate key", '"text" stands there twice'),
            ({"text": "Speaker 0: A."}, "missing key", '"audio" is missing (found are text)'),
            ({}, "missing key", '"audio" is missing (found are none)'),
            ({"audio": "clips/a.wav", "sentence": "A."}, "missing key", "with --text_column_name"),
            (good(audio=None), "missing key", '"audio" is missing (it is null)'),
            (good(text=None), "missing key", '"text" is missing (it is null)'),
            (good(text=5), "bad text", "of type int (5)"),
            (good(text=["A."]), "bad text", "of type list"),
            (good(text=" \n"), "bad text", "is empty"),
            ('{"text": "half \\ud800", "audio": "clips/a.wav"}', "bad text", "lone surrogate"),
            (good(audio="clips/c.wav"), "missing file", "clips/c.wav does not exist"),
            (good(audio="clips"), "missing file", "is not a file"),
            (good(audio=5), "wrong type", "of type int"),
            (good(audio=[]), "empty audio", "is empty"),
            (good(voice_prompts="c.wav"), "missing file", "train.jsonl:2: voice_prompts: "),
            (good(voice_prompts=["clips/a.wav", "c.wav"]), "missing file", "train.jsonl:2: voice_prompts[1]: "),
            (good(voice_prompts=["clips/a.wav", None]), "wrong type", "voice_prompts[1]: audio is of type NoneType"),
            (good(voice_prompts=5), "wrong type", "of type int"),
            (good(speaker=1.5), "bad speaker", "of type float"),
            (good(speaker=True), "bad speaker", "of type bool"),
            (good(speaker={"name": "ann"}), "bad speaker", "of type dict"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_bad_rows(self, folder: Path, line: Mapping[str, object] | str | bytes, reason: str, says: str) -> None:
        path = write(folder, good(), line, good(), good())
        with pytest.raises(DataError) as caught:
            read_jsonl(path, Columns(), BadRows("error"))
        message = str(caught.value)
        assert message.startswith("train.jsonl:2: ")
        assert says in message
        assert "\n" not in message
        assert len(message) < 700

        bad_rows = BadRows("skip")
        rows = read_jsonl(path, Columns(), bad_rows)
        assert [row.where for row in rows] == ["train.jsonl:1", "train.jsonl:3", "train.jsonl:4"]
        assert bad_rows.counts == {reason: 1}

    def test_what_is_no_number_in_an_array_is_found_when_it_is_loaded(self, folder: Path) -> None:
        [row] = read(folder, '{"text": "Speaker 0: A.", "audio": [0.1, NaN, 0.2]}')
        with pytest.raises(DataError, match=r"train\.jsonl:1: audio holds numbers that are not finite"):
            load_audio(row.audio)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "holds no rows"),
            (b"\n \r\n", "holds no rows"),
            ('{"text": "a"}\n'.encode("utf-16"), "the file is UTF-16"),
        ],
    )
    def test_files_without_rows(self, tmp_path: Path, content: bytes, says: str) -> None:
        (tmp_path / "train.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=says):
            read_jsonl(tmp_path / "train.jsonl", Columns(), BadRows("skip"))

    @pytest.mark.parametrize("name", ["not here.jsonl", ".", "a\0b"])
    def test_files_that_cannot_be_read(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match=r"the file cannot be read|is not a file"):
            read_jsonl(tmp_path / name, Columns(), BadRows("skip"))

    @pytest.mark.parametrize("kind", ["device", "pipe", "sparse", "nested", "long"])
    def test_files_without_an_end_are_refused_at_once(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "train.jsonl"
        if kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "sparse":
            with path.open("wb") as file:
                file.truncate(50 << 30)
        elif kind == "nested":
            path.write_text("[" * 100_000)
        else:
            monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1_000)
            path.write_text("x" * 2_000)
        with pytest.raises(DataError, match=r"train\.jsonl") as caught:
            read_jsonl(path, Columns(), BadRows("error"))
        assert "\n" not in str(caught.value)

    def test_a_name_that_is_nearly_right_is_proposed(self, folder: Path) -> None:
        for audio in ("clips/A.wav", "clips/a.wav ", "clips\\a.wav", f"file://{folder}/clips/a.wav"):
            with pytest.raises(DataError, match=r'train\.jsonl:1: .* does not exist; did you mean ".*/clips/a\.wav"'):
                read(folder, good(audio=audio))
        write(folder, good())
        with pytest.raises(DataError, match=r'did you mean ".*/train\.jsonl"'):
            read_jsonl(folder / "Train.JSONL", Columns(), BadRows("error"))

    def test_parts_of_a_recording(self, folder: Path) -> None:
        rows = read(
            folder,
            good(audio="clips/b.wav", offset=0.0, duration=0.1),
            good(audio="clips/b.wav", offset=0.1, duration=0.1),
            good(audio={"path": "clips/b.wav", "start": 0.2}),
            good(audio="clips/a.wav", voice_prompts=[{"path": "clips/b.wav", "end": 0.3}], start=0.1),
        )
        np.testing.assert_array_equal(load_audio(rows[0].audio), OTHER[:2_400])
        np.testing.assert_array_equal(load_audio(rows[1].audio), OTHER[2_400:4_800])
        np.testing.assert_array_equal(load_audio(rows[2].audio), OTHER[4_800:])
        np.testing.assert_array_equal(load_audio(rows[3].audio), TONE[2_400:])
        assert rows[3].voice_prompts is not None
        np.testing.assert_array_equal(load_audio(rows[3].voice_prompts[0]), OTHER[:7_200])

    def test_a_part_that_makes_no_sense_names_the_row(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r'^train\.jsonl:1: "start" is \'0:30\'; a number of seconds'):
            read(folder, good(start="0:30"))
        with pytest.raises(DataError, match=r"^train\.jsonl:1: the audio is cut to .* and the row to"):
            read(folder, good(audio={"path": "clips/a.wav", "start": 0.1}, start=0.2))

    @pytest.mark.parametrize(
        "key", ["sampling_rate", "sample_rate", "sr", "sampleRate", "samplerate", "sample_rate_hz", "fs"]
    )
    def test_a_rate_beside_an_array_counts(self, folder: Path, key: str) -> None:
        [row] = read(folder, good(audio=[0.1, -0.1] * 4_000, **{key: 8_000}))
        assert len(load_audio(row.audio)) == 24_000
        with pytest.raises(DataError, match="one is expected"):
            read(folder, good(audio={"array": [0.1, 0.2], "sampling_rate": 16_000}, **{key: 8_000}))
        with pytest.raises(DataError, match="a whole number of hertz"):
            read(folder, good(audio=[0.1, -0.1], **{key: "fast"}))

    def test_unused_keys_and_shared_audio_are_said_once(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        read(folder, good(lang="en", id=1, duration=0.2), good(text="Speaker 0: Bye.", id=2), good(id=3))
        unused, shared = [record.getMessage() for record in caplog.records]
        assert unused == "train.jsonl: these keys are not used: id, lang"
        assert shared.startswith("train.jsonl: 1 rows have the same audio as an earlier row but another text, first ")
        assert 'first train.jsonl:2; if each says a part of it, give "start" and "end" in seconds' in shared

    def test_a_speaker_may_be_a_whole_number_with_a_point(self, folder: Path) -> None:
        assert [row.speaker for row in read(folder, good(speaker=7.0), good(speaker=7))] == ["7", "7"]
        with pytest.raises(DataError, match="a name or a whole number"):
            read(folder, good(speaker=7.5))

    def test_a_column_that_was_named_must_be_there(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r'no row has a column "ref".* audio, text; .*--voice_prompts_column_name'):
            read(folder, good(), columns=Columns(voice_prompts="ref"))
        with pytest.raises(DataError, match="--speaker_column_name"):
            read(folder, good(), columns=Columns(speaker="who"))
        assert len(read(folder, good(), good(ref="clips/b.wav"), columns=Columns(voice_prompts="ref"))) == 2


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["array", "bytes", "path", "sampling_rate", "x"]), inner, max_size=4)
    ),
    max_leaves=9,
)


@given(st.dictionaries(st.sampled_from(["text", "audio", "voice_prompts", "speaker", "x"]), JSON_VALUES))
def test_any_values_make_a_row_or_a_data_error(values: dict[str, object]) -> None:
    try:
        row = make_row(values, Columns(), Path("/no/such/folder"), "train.jsonl:1")
        load_audio(row.audio)
    except DataError as error:
        said = str(error)
        said.encode()
        assert said.isprintable()
    else:
        said = row.where
    assert said.startswith("train.jsonl:1")


class TestBadRows:
    def test_error_raises_what_it_was_given(self) -> None:
        error = DataError("train.jsonl:3: no good")
        with pytest.raises(DataError) as caught:
            BadRows("error").report(error, "missing file")
        assert caught.value is error

    def test_skip_counts_by_reason(self) -> None:
        bad_rows = BadRows("skip")
        assert bad_rows.summary() == ""
        for line, reason in ((3, "missing file"), (4, "not JSON"), (9, "missing file")):
            bad_rows.report(DataError(f"train.jsonl:{line}: no good"), reason)
        assert bad_rows.counts == {"missing file": 2, "not JSON": 1}
        assert bad_rows.summary() == "missing file: 2, first train.jsonl:3; not JSON: 1, first train.jsonl:4"

    def test_half_may_be_bad_and_no_more(self) -> None:
        bad_rows = BadRows("skip")
        bad_rows.check(0)
        for line in range(3):
            bad_rows.report(DataError(f"train.jsonl:{line}: no good"), "missing file")
        bad_rows.check(6)
        bad_rows.check(2, before=2)
        with pytest.raises(DataError, match=r"3 of 5 rows are bad .*\n  train\.jsonl:0: no good"):
            bad_rows.check(5)
        with pytest.raises(DataError, match="1 of 1 rows"):
            bad_rows.check(1, before=2)

    def test_a_file_of_mostly_bad_rows_is_refused_while_it_is_read(self, folder: Path) -> None:
        bad_rows = BadRows("skip")
        assert len(read_jsonl(write(folder, good(), "{"), Columns(), bad_rows)) == 1
        path = write(folder, good(), "{", "{")
        with pytest.raises(DataError, match="2 of 3 rows are bad"):  # what was bad in the first file does not count
            read_jsonl(path, Columns(), bad_rows)


class TestDatasets:
    """Local ones; `tables` below are what `datasets` writes and what the Hub serves."""

    @staticmethod
    def read(
        name: Path | str, split: str = "train", columns: Columns | None = None, policy: BadRows | None = None
    ) -> Sequence[Row]:
        return read_dataset(str(name), None, split, columns or Columns(), None, policy or BadRows("error"))

    @pytest.fixture
    def corpus(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder without "test" in its name: `datasets` takes that for the name of the split."""
        return tmp_path_factory.mktemp("corpus")

    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        datasets.disable_progress_bars()

    @staticmethod
    def table(**columns: list[object]) -> datasets.Dataset:
        rows = len(next(iter(columns.values()))) if columns else 3
        texts = [f"Speaker 0: {row}." for row in range(rows)]
        return datasets.Dataset.from_dict(
            {"text": texts, "audio": [{"bytes": wav(), "path": "a.wav"}] * rows} | columns
        )

    def test_a_saved_data_set_with_an_audio_feature(self, tmp_path: Path) -> None:
        table = self.table(audio=[{"bytes": wav(), "path": None}, {"bytes": wav(OTHER), "path": "b.wav"}])
        table.cast_column("audio", datasets.Audio()).save_to_disk(tmp_path / "saved")
        rows = self.read(tmp_path / "saved")
        assert [len(load_audio(row.audio)) for row in rows] == [4_800, 9_600]
        assert texts(rows) == ["Speaker 0: 0.", "Speaker 0: 1."]
        assert rows[1].where == f"dataset {tmp_path / 'saved'}[train] row 1"
        assert rows[-1].where == rows[1].where
        assert texts(rows[1:]) == ["Speaker 0: 1."]
        with pytest.raises(IndexError):
            rows[2]

    def test_audio_stays_in_the_mapped_file(self, tmp_path: Path) -> None:
        self.table().save_to_disk(tmp_path / "saved")
        row = self.read(tmp_path / "saved")[0]
        assert isinstance(row.audio.data, memoryview)
        assert pickle.loads(pickle.dumps(row.audio)).digest() == row.audio.digest()

    def test_a_saved_dictionary_of_splits(self, tmp_path: Path) -> None:
        splits = datasets.DatasetDict(train=self.table(), dev=self.table(text=["Speaker 0: dev."]))
        splits.save_to_disk(tmp_path / "saved")
        assert texts(self.read(tmp_path / "saved", "dev")) == ["Speaker 0: dev."]
        with pytest.raises(DataError, match=r'no split "validation"; its splits are train, dev; .*--eval_split_name'):
            self.read(tmp_path / "saved", "validation")

    def test_one_saved_data_set_is_the_split_that_it_was_or_train(self, tmp_path: Path) -> None:
        self.table().save_to_disk(tmp_path / "plain")
        with pytest.raises(DataError, match="its splits are train"):
            self.read(tmp_path / "plain", "validation")
        for name in ("dev", "dev[:50%]"):
            datasets.Dataset(self.table().data, split=datasets.NamedSplit(name)).save_to_disk(tmp_path / name)
            assert len(self.read(tmp_path / name, "dev")) == 3
            with pytest.raises(DataError, match="its splits are dev"):
                self.read(tmp_path / name)

    def test_parquet_in_a_folder_as_a_file_and_sliced(self, corpus: Path) -> None:
        (corpus / "clips").mkdir()
        (corpus / "clips" / "b.wav").write_bytes(wav(OTHER))
        self.table(audio=["../clips/b.wav"] * 4).to_parquet(corpus / "tables" / "train.parquet")
        for name in (corpus / "tables", corpus / "tables" / "train.parquet"):
            assert [len(load_audio(row.audio)) for row in self.read(name)] == [9_600] * 4
            with pytest.raises(DataError, match="its splits are train"):
                self.read(name, "validation")
        rows = self.read(corpus / "tables", "train[75%:]")
        assert texts(rows) == ["Speaker 0: 3."]
        assert rows[0].where == f"dataset {corpus / 'tables'}[train[75%:]] row 0"

    @pytest.mark.parametrize(
        ("audio", "length"),
        [
            (wav(OTHER), 9_600),
            ({"array": OTHER, "sampling_rate": 48_000}, 4_800),
            ({"array": np.stack([OTHER, OTHER]), "sampling_rate": 24_000}, 9_600),
            (OTHER, 9_600),
            (OTHER.astype(np.float64), 9_600),
            ((OTHER * 32_768).astype(np.int16), 9_600),
        ],
        ids=["bytes", "array and rate", "two channels", "float32", "float64", "int16"],
    )
    def test_columns_of_every_form(self, tmp_path: Path, audio: object, length: int) -> None:
        self.table(audio=[audio, audio]).save_to_disk(tmp_path / "saved")
        for row in self.read(tmp_path / "saved"):
            assert len(load_audio(row.audio)) == length

    def test_prompts_and_speakers(self, tmp_path: Path) -> None:
        one, two = {"bytes": wav(), "path": None}, {"bytes": wav(OTHER), "path": None}
        table = self.table(voice_prompts=[[one, two], [], None], speaker=[0, 1, 1])
        table = table.cast_column("voice_prompts", datasets.List(datasets.Audio()))
        table.cast_column("speaker", datasets.ClassLabel(names=["ann", "bob"])).save_to_disk(tmp_path / "saved")
        rows = self.read(tmp_path / "saved")
        assert [row.voice_prompts and [len(load_audio(audio)) for audio in row.voice_prompts] for row in rows] == [
            [4_800, 9_600],
            None,
            None,
        ]
        assert [row.speaker for row in rows] == ["0", "1", "1"]

    def test_a_single_prompt_of_audio_or_null(self, tmp_path: Path) -> None:
        table = self.table(voice_prompts=[{"bytes": wav(OTHER), "path": None}, None])
        table.cast_column("voice_prompts", datasets.Audio()).save_to_disk(tmp_path / "saved")
        rows = self.read(tmp_path / "saved")
        assert rows[0].voice_prompts is not None
        assert len(load_audio(rows[0].voice_prompts[0])) == 9_600
        assert rows[1].voice_prompts is None

    def test_a_selection_in_another_order_is_read_as_it_is_seen(self, tmp_path: Path) -> None:
        datasets.DatasetDict(train=self.table().select([2, 0])).save_to_disk(tmp_path / "saved")
        assert texts(self.read(tmp_path / "saved")) == ["Speaker 0: 2.", "Speaker 0: 0."]

    def test_rows_over_several_pieces_and_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hf_datasets, "BATCH_ROWS", 4)
        whole = datasets.concatenate_datasets([self.table(), self.table(), self.table()])
        assert whole.data.column("text").num_chunks == 3
        rows = hf_datasets.DatasetRows(whole, Columns(), None, "dataset d[train]")
        assert (
            texts(list(rows))
            == texts([rows[index] for index in range(9)])
            == [f"Speaker 0: {n % 3}." for n in range(9)]
        )
        assert [row.where.split()[-1] for row in rows] == [rows[index].where.split()[-1] for index in range(9)]
        assert rows[8].where.endswith("row 8")

    def test_prompts_that_are_arrays(self, tmp_path: Path) -> None:
        self.table(voice_prompts=[OTHER, np.zeros(0, np.float32)]).save_to_disk(tmp_path / "saved")
        rows = self.read(tmp_path / "saved")
        assert rows[0].voice_prompts is not None
        assert [len(load_audio(prompt)) for prompt in rows[0].voice_prompts] == [9_600]
        assert rows[1].voice_prompts is None

    def test_bad_rows(self, tmp_path: Path) -> None:
        sound = {"bytes": wav(), "path": None}
        audio = [sound, None, {"bytes": None, "path": "not here.wav"}, sound, sound, sound, sound]
        table = self.table(text=["A.", "B.", "C.", None, "E.", "", "G."], audio=audio)
        table.save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match=r'^dataset .*saved\[train\] row 1: "audio" is missing \(it is null\)'):
            self.read(tmp_path / "saved")
        bad_rows = BadRows("skip")
        with pytest.raises(DataError, match="4 of 7 rows are bad"):
            self.read(tmp_path / "saved", policy=bad_rows)
        assert bad_rows.counts == {"missing key": 2, "missing file": 1, "bad text": 1}

        table.select([0, 1, 4, 5, 6]).save_to_disk(tmp_path / "better")
        rows = self.read(tmp_path / "better", policy=BadRows("skip"))
        assert texts(rows) == ["A.", "E.", "G."]
        assert [row.where[-5:] for row in rows] == ["row 0", "row 2", "row 4"]

    def test_columns_that_are_not_there(self, tmp_path: Path) -> None:
        self.table().save_to_disk(tmp_path / "saved")
        for columns, says in (
            (Columns(text="sentence"), 'no column "sentence"; its columns are text, audio; .*--text_column_name'),
            (Columns(audio="wav"), "--audio_column_name"),
            (Columns(voice_prompts="ref"), "--voice_prompts_column_name"),
        ):
            with pytest.raises(DataError, match=says):
                self.read(tmp_path / "saved", columns=columns)

    def test_damaged_and_foreign_places(self, tmp_path: Path) -> None:
        self.table().save_to_disk(tmp_path / "cut")
        [arrow] = (tmp_path / "cut").glob("*.arrow")
        arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
        for number, state in enumerate(("{", "[]", '{"_data_files": 5}')):
            self.table().save_to_disk(tmp_path / f"state{number}")
            (tmp_path / f"state{number}" / "state.json").write_text(state)
        (tmp_path / "empty").mkdir()
        (tmp_path / "script").mkdir()
        (tmp_path / "script" / "script.py").write_text("raise SystemExit(99)")
        (tmp_path / "parquet").mkdir()
        (tmp_path / "parquet" / "train.parquet").write_bytes(b"PAR1 no PAR1")
        (tmp_path / "rows.jsonl").write_text("{}")
        for name in ("cut", "state0", "state1", "state2", "empty", "script", "parquet", "rows.jsonl", "not here"):
            with pytest.raises(DataError, match=f"^dataset .*{name}: cannot be loaded") as caught:
                self.read(tmp_path / name)
            assert "\n" not in str(caught.value)

    def test_text_that_is_no_text_inside_a_table_is_found_at_the_door(self, tmp_path: Path) -> None:
        bad = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
        datasets.Dataset(pa.table({"text": bad, "audio": pa.array([wav()])})).save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match="cannot be loaded"):
            self.read(tmp_path / "saved")

    def test_an_empty_split(self, corpus: Path) -> None:
        self.table(text=[], audio=[]).to_parquet(corpus / "train.parquet")
        with pytest.raises(DataError, match="corresponds to no data"):
            self.read(corpus)

    def test_offline_the_message_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match="hf download --repo-type dataset somebody/speech --local-dir FOLDER"):
            self.read("somebody/speech")

    def test_verifications_can_be_ignored(self, corpus: Path) -> None:
        self.table(audio=[wav()] * 2).to_parquet(corpus / "train.parquet")
        kinds = "features: [{name: text, dtype: string}, {name: audio, dtype: binary}]"
        splits = "splits: [{name: train, num_bytes: 1, num_examples: 9}]"
        (corpus / "README.md").write_text(f"---\ndataset_info:\n  {kinds}\n  {splits}\n---\n")
        arguments = (str(corpus), None, "train", Columns(), None, BadRows("error"))
        with pytest.raises(DataError, match="num_examples=9"):
            read_dataset(*arguments)
        assert len(read_dataset(*arguments, ignore_verifications=True)) == 2


class TestCells:
    def test_nulls_slices_and_nesting(self) -> None:
        array = pa.array(
            [
                {"a": b"xy", "b": [1.0, None], "c": "t"},
                None,
                {"a": None, "b": None, "c": None},
                {"a": b"", "b": [], "c": "u"},
                {"a": b"z", "b": [3.0], "c": "v"},
            ]
        )
        for start in range(5):
            found = cells(array[start:])
            expected = array.to_pylist()[start:]
            assert [cell is None for cell in found] == [cell is None for cell in expected]
            for cell, wanted in zip(found, expected, strict=True):
                if isinstance(cell, dict) and wanted is not None:
                    assert (cell["a"] if cell["a"] is None else bytes(cell["a"])) == wanted["a"]
                    assert cell["c"] == wanted["c"]
                    numbers = None if wanted["b"] is None else [np.nan if x is None else x for x in wanted["b"]]
                    np.testing.assert_array_equal(cell["b"], numbers)

    @pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
    def test_binary_is_a_window_onto_the_buffer(self, kind: pa.DataType) -> None:
        array = pa.array([b"ab", None, b"", b"cde"], kind)[1:]
        found = cells(array)
        assert [cell if cell is None else bytes(cell) for cell in found] == [None, b"", b"cde"]
        assert np.shares_memory(np.frombuffer(found[2], np.uint8), np.frombuffer(array.buffers()[2], np.uint8))

    def test_lists(self) -> None:
        assert cells(pa.array([[["a"], []], None], pa.list_(pa.list_(pa.string())))) == [[["a"], []], None]
        [matrix] = cells(pa.array([[[1.0, 2.0], [3.0, 4.0]]], pa.list_(pa.list_(pa.float32(), 2))))
        np.testing.assert_array_equal(matrix, [[1, 2], [3, 4]])
        numbers = pa.array([[1.0, 2.0]], pa.large_list(pa.float32()))
        assert np.shares_memory(cells(numbers)[0], numbers.values.to_numpy())
        assert cells(pa.array([], pa.binary())) == []
        assert cells(pa.array([{}, None], pa.struct([]))) == [{}, None]


class TestSplitOff:
    @pytest.fixture
    def rows(self, folder: Path) -> list[Row]:
        return read(folder, *(good(text=f"Speaker 0: {number}.") for number in range(20)))

    def test_parts_are_disjoint_complete_and_in_order(self, rows: list[Row]) -> None:
        train, evaluation = split_off(rows, 0.2, seed=0)
        assert (len(train), len(evaluation)) == (16, 4)
        lines = [[int(row.where.split(":")[1]) for row in part] for part in (train, evaluation)]
        assert sorted(lines[0] + lines[1]) == list(range(1, 21))
        assert lines == [sorted(part) for part in lines]
        assert lines[1] != [17, 18, 19, 20]  # chosen at random

    def test_the_seed_decides(self, rows: list[Row]) -> None:
        def chosen(seed: int) -> list[str]:
            return texts(split_off(rows, 0.2, seed)[1])

        assert chosen(0) == chosen(0)
        assert chosen(0) != chosen(1)

    def test_neither_part_is_ever_empty(self, rows: list[Row]) -> None:
        assert len(split_off(rows, 0.001, seed=0)[1]) == 1
        assert len(split_off(rows, 0.999, seed=0)[0]) == 1

    def test_a_part_can_be_split_and_indexed_again(self, rows: list[Row]) -> None:
        train, _ = split_off(rows, 0.5, seed=0)
        assert texts(split_off(train, 0.5, seed=0)[0]) == [
            row.text for row in train if row in split_off(train, 0.5, 0)[0]
        ]
        assert train[-1] is list(train)[-1]
        assert texts(train[2:4]) == texts(train)[2:4]
        with pytest.raises(IndexError):
            train[10]

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 5.0, float("nan")])
    def test_what_is_no_share_is_refused(self, rows: list[Row], fraction: float) -> None:
        with pytest.raises(ArgumentError, match="--eval_split_size"):
            split_off(rows, fraction, seed=0)

    def test_one_row_is_too_few(self, rows: list[Row]) -> None:
        with pytest.raises(DataError, match="at least 2"):
            split_off(rows[:1], 0.5, seed=0)
