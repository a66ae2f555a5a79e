"""What is kept of a run: the log, its page, and when losses are refused."""

from __future__ import annotations

import re

import pytest
from refusal import refuses

from fpsgen.errors import NUMERIC, FpsgenError
from fpsgen.report import training
from fpsgen.report.charts import BOTTOM, HEIGHT, LEFT, WIDTH
from fpsgen.report.training import read_log
from fpsgen.train.log import LOG, PAGE, WINDOW, Log


def row(step: int, loss: float, profile: str = "late", **part) -> dict:
    own = {"loss": loss, "profile": profile, "sigma": 0.5, "density": 0.2} | part
    common = {"step": step, "loss": loss, "profile": profile, "density": 0.2, "grad_norm": 1.0, "lr": 1e-4}
    return common | {"samples": 2, "seconds": 0.5, "objectives": {"distill": own}}


def test_lines_beyond_a_checkpoint_are_forgotten_and_broken_ones_passed_over(tmp_path):
    log = Log(tmp_path)
    log.begin(0)
    for step in (1, 2, 3):
        log.add(row(step, 1.0))
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 4, "lo')
    again = Log(tmp_path)
    again.begin(2)
    again.add(row(3, 5.0))
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path / LOG)] == [(1, 1.0), (2, 1.0), (3, 5.0)]


def test_the_page_takes_the_runs_own_videos_alone(tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"no video")
    log = Log(tmp_path)
    log.begin(0)
    log.add(row(1, 1.0))
    assert log.show("run").is_file()


def test_losses_that_rise_in_one_profile_end_the_run(tmp_path):
    log = Log(tmp_path)
    log.begin(0)
    with refuses(NUMERIC, "early"):
        for step in range(1, 6 * WINDOW):
            log.add(row(step, 1.0 if step % 2 else 0.1 * 1.2 ** (step / 4), "late" if step % 2 else "early"))


def test_losses_may_rise_while_attention_becomes_sparser(tmp_path):
    """At first the student is the teacher, and its loss nothing."""
    log = Log(tmp_path, judged_from=2 * WINDOW)
    log.begin(0)
    for step in range(1, 5 * WINDOW):
        log.add(row(step, 1e-6 if step <= 2 * WINDOW else 1.0))
    log.check(5 * WINDOW)


def test_the_last_loss_of_that_time_is_no_measure_for_those_that_follow(tmp_path):
    log = Log(tmp_path, judged_from=3)
    log.begin(0)
    for step in range(1, 2 * WINDOW + 4):
        log.add(row(step, 1e6 if step <= 3 else 1.0 if step <= WINDOW + 3 else 7.0))
    with refuses(NUMERIC):
        log.check(2 * WINDOW + 3)


def test_no_checkpoint_is_written_where_losses_have_risen_already(tmp_path):
    log = Log(tmp_path)
    log.begin(0)
    for step in range(1, 2 * WINDOW + 1):
        log.add(row(step, 1.0 if step <= WINDOW else 7.0))
    with pytest.raises(FpsgenError):
        log.check(2 * WINDOW)


def test_the_table_has_means_of_the_right_rows():
    rows = [row(step, float(step), "late" if step <= 20 else "early") for step in range(1, 41)]
    rows[0]["objectives"]["distill"]["dense_loss"] = 0.25
    lines = training.table(rows)
    late = next(line for line in lines if "late" in line).split()
    early = next(line for line in lines if "early" in line).split()
    assert late[2:] == ["20", "1.5", "19.5", "0.25"] and early[2:] == ["20", "21.5", "39.5", "-"]


def test_the_page_has_a_curve_for_each_profile_and_fetches_nothing(tmp_path):
    log = Log(tmp_path)
    log.begin(0)
    for step in range(1, 41):
        dense = {"dense_loss": (0.5, 1.5)[step % 2]} if step % 4 < 2 else {}
        log.add(row(step, 2.0 / step, ("late", "early<b>")[step % 2], **dense))
    text = log.show("a & b").read_text()
    assert (tmp_path / PAGE).exists() and "a &amp; b" in text
    curves = re.findall(r"<polyline points=\"([^\"]*)\"[^>]*><title>([^<]*)</title>", text)
    assert {"late", "early&lt;b&gt;", "dense", "sparse"} <= {name for _, name in curves}
    for profile in ("late", "early&lt;b&gt;"):
        assert f"<h2>sparse beside dense, same samples: distill, {profile}</h2>" in text
    heights = [{spot.split(",")[1] for spot in spots.split()} for spots, name in curves if name == "dense"]
    assert [len(each) for each in heights] == [1, 1]  # of one profile each
    assert "early<b>" not in text and not re.findall(r"(?:src|href)=\"(?!data:)", text)


def test_a_curve_has_points_where_something_was_measured_alone(tmp_path, capsys):
    """Held-out errors begin with those before training; `fpsgen report` draws the same page."""
    from fpsgen.cli.app import run

    (tmp_path / "before.json").write_text('{"late": 0.8, "early": 0.5}')
    log = Log(tmp_path)
    log.begin(0)
    for step in range(1, 201):
        dense = {"dense_loss": 0.5} if step % 20 == 0 else {}
        held_out = {"held_out": {"late": 0.4, "early": 0.25}} if step % 50 == 0 else {}
        log.add(row(step, 1.0, **dense) | held_out)
    assert run(["report", str(tmp_path / LOG), "-o", str(tmp_path / "again.html"), "-q"]) == 0
    for text in (log.show("run").read_text(), (tmp_path / "again.html").read_text()):
        curves = re.findall(r"<polyline points=\"([^\"]*)\"[^>]*><title>([^<]*)</title>", text)
        points = {name: [tuple(map(float, spot.split(","))) for spot in spots.split()] for spots, name in curves}
        assert len(points["dense"]) == 10
        for profile in ("late", "early"):
            across, heights = zip(*points[profile], strict=True)
            assert len(heights) == 5 and heights[0] < heights[1] == heights[-1], profile  # y goes down the page
            base = HEIGHT - BOTTOM
            assert (base - heights[1]) / (base - heights[0]) == pytest.approx(0.5, abs=0.01)
            assert across[0] == LEFT and across[-1] == WIDTH - 8
            assert across[2] == pytest.approx((across[0] + across[-1]) / 2, abs=0.1)  # step 100 of 200


def test_tensorboard_gets_the_same_numbers(tmp_path):
    event_file_loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = Log(tmp_path)
    log.begin(0)
    for step in (1, 2):
        log.add(row(step, 1.0 / step, dense_loss=0.125))
    log.close()
    events = event_file_loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/distill/late")] == [(1, 1.0), (2, 0.5)]
    assert events.Scalars("dense_loss/distill/late")[0].value == 0.125
    assert events.Scalars("samples_per_second")[0].value == 4.0


def test_report_shows_a_run(tmp_path, capsys):
    from fpsgen.cli.app import run

    log = Log(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    log.begin(0)
    for step in range(1, 21):
        log.add(row(step, 2.0))
    page = tmp_path / "page.html"
    assert run(["report", str(tmp_path / "mine" / LOG), "-o", str(page)]) == 0
    said = capsys.readouterr().out
    assert "distill, late" in said and said.endswith(f"{page}\n") and "fpsgen train: mine" in page.read_text()


@pytest.mark.parametrize(
    "change",
    [{"loss": "1"}, {"step": 1.5}, {"objectives": []}, {"objectives": {"flow": 3}}, {"seconds": None}, {"held_out": 3}],
)
def test_lines_that_are_no_rows_are_passed_over(tmp_path, change):
    import json

    good = row(1, 1.0, dense_loss=0.5) | {"held_out": {"late": 0.5}}
    path = tmp_path / LOG
    path.write_text("\n".join([json.dumps(good), json.dumps(good | change), "[" * 100_000, json.dumps(good)]))
    assert len(read_log(path)) == 2 and training.page(read_log(path), "x")
