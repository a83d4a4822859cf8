import json
import time
from pathlib import Path

from vibevoice_finetune.web.charts import Curve, draw, read_curves, thinned


def write(path: Path, rows: list[dict[str, float]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_figures_are_read_where_a_row_has_them(tmp_path: Path) -> None:
    metrics = write(tmp_path / "m", [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 3.0}, {"step": 2, "loss": 1.0}])
    found = read_curves(metrics, ["loss", "eval_loss", "other"])
    assert found == {"loss": Curve((1, 2), (2.0, 1.0)), "eval_loss": Curve((1,), (3.0,))}


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    metrics = write(tmp_path / "m", [{"step": 1, "loss": 2.0}])
    with metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_curves(metrics, ["loss"])["loss"].steps == (1,)


def test_many_points_become_few_means() -> None:
    curve = thinned([(step, float(step % 2)) for step in range(1, 1001)], most=10)
    assert curve.steps == (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
    assert curve.values == (0.5,) * 10


def test_a_long_log_is_drawn_quickly(tmp_path: Path) -> None:
    metrics = write(tmp_path / "m", [{"step": n, "loss": 1.0, "learning_rate": 1e-4} for n in range(100_000)])
    began = time.process_time()
    page = draw(metrics)
    assert time.process_time() - began < 3
    assert len(page) < 30_000


def test_a_picture_says_in_words_what_it_shows(tmp_path: Path) -> None:
    page = draw(write(tmp_path / "m", [{"step": 1, "loss": 2.0}, {"step": 9, "loss": 1.0}]))
    assert "training: 2 at first, 1 now" in page
    assert page.count("<svg") == 1


def test_one_value_alone_and_equal_values_can_be_drawn(tmp_path: Path) -> None:
    alone = draw(write(tmp_path / "m", [{"step": 5, "loss": 0.0}]))
    assert "nan" not in alone
    assert alone.count("<circle") == 1
    assert "nan" not in draw(write(tmp_path / "m", [{"step": 5, "loss": 1.0}, {"step": 6, "loss": 1.0}]))


def test_before_the_first_step_it_says_so(tmp_path: Path) -> None:
    assert "after the first steps" in draw(tmp_path / "none")
