"""The bench's page and table: what stands in them comes from the rows, and nothing in them can act."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from refusal import refuses

from fpsgen.cli.app import run
from fpsgen.errors import BAD_INPUT, DISK, OK
from fpsgen.evaluate.ffmpeg_metrics import EQUAL_DB
from fpsgen.report import charts
from fpsgen.report.bench import cells, markdown, notes, profile_cells, table
from fpsgen.report.page import page
from fpsgen.report.rows import read_rows


def spread(seconds: float) -> dict:
    return {"median": seconds, "min": seconds * 0.9, "max": seconds * 1.1, "n": 3}


def row(method: str, speedup: float, psnr: float | None, **more) -> dict:
    return {
        **{"schema": "fpsgen.bench/2", "method": method, "baseline": "bf16", "device": "GPU", "created": "2026"},
        **{"model": "m", "prompt": "a <b>cat</b>", "schedule": "paper", "versions": {"torch": "2"}, "commit": "abc"},
        **{"random_weights": False, "width": 64, "height": 48, "frames": 5, "tokens": 96, "steps": 2, "seed": 1},
        **{"guidance": 5.0, "stages_s": {"text": spread(1.0), "denoise": spread(12.0 / speedup), "vae": spread(2.0)}},
        **{"step_s": spread(6.0 / speedup), "steps_s": [6.0 / speedup] * 2, "total_s": spread(3 + 12.0 / speedup)},
        **{"attention_share": 0.5, "density": 0.25, "kernels": {"k": 1}, "peak_memory": {"cuda_bytes": 2 * 10**9}},
        **{"speedup_denoise": speedup, "psnr_db": psnr, "ssim": psnr and 0.9, "vmaf": psnr and 80.0},
        **{"xpsnr_db": psnr and 33.0, "flicker": 1.5, "video": None, "command": "fpsgen bench --x '<i>'"},
    } | more


ROWS = [row("bf16", 1.0, None), row("fps", 3.0, 25.0)]
PROFILE = {"profile": "early", "steps": 2, "method": "fps", "kernel": "cpu", "density": 0.25, "tile": [3, 5, 8]}
PROFILE |= {"window": [1, 3, 3], "step_s": spread(1.0)}


def test_cells_say_what_the_row_says():
    shown = cells(ROWS[1])
    assert shown["speedup"] == "3.00x" and shown["denoise"] == "4.00" and shown["psnr"] == "25.0"
    assert shown["step"] == "2.000 (1.800-2.200)" and shown["memory"] == "2.0 GB" and shown["density"] == "25%"
    assert cells(ROWS[0])["psnr"] == "-" and cells(row("fps", 1.0, None, ssim=1))["psnr"] == "equal"


def test_the_baselines_attention_is_named():
    for name, named in (("fa3", ["fa3"]), ("auto", []), (None, [])):
        rows = [row("bf16", 1.0, None, bf16_backend=name), row("fps", 3.0, 25.0, bf16_backend="cudnn")]
        assert [note.split()[-1] for note in notes(rows) if "dense attention" in note] == named


def test_rows_of_an_installed_package_can_be_read(tmp_path):
    """Outside a checkout there is no commit."""
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row("bf16", 1.0, None, commit=commit)) + "\n" for commit in ("", None)))
    assert [found["commit"] for found in read_rows(path)] == ["", None]


def test_the_page_shows_the_rows_and_escapes_what_they_hold():
    text = page(ROWS)
    assert (
        "3.00x over bf16" in text
        and ">25.0<" in text
        and "<b>cat</b>" not in text
        and "<i>" not in text.split("<h2>")[0]
    )
    assert "&lt;i&gt;" in text and not re.findall(r'(?:src|href)="(?!data:)', text)
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%;background", text)]
    bars = [sum(widths[:4]), sum(widths[4:])]
    assert bars == pytest.approx([100, 100 * 7 / 15], abs=0.1)  # 15 and 7 seconds


class Read(HTMLParser):
    """tags: of the page, with their attributes. table: rows of cells. text: all of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.table: list[list[str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.table.append([])
        if tag in ("th", "td"):
            self.table[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1][0] in ("th", "td"):
            self.table[-1][-1] += data.strip()


def test_no_text_of_a_row_becomes_a_tag(tmp_path):
    """Each text says which it is; the prompt is shown where there is a video."""
    video = tmp_path / "a<i>.mp4"
    video.write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 16)
    names = ("prompt", "model", "device", "created", "commit", "schedule", "command")
    texts = {name: f"<i title=\"{name}\">'{name}'</i>" for name in names}
    texts |= {"versions": {"<i>": "<i>"}, "kernels": {"<i>": 1}, "video": str(video)}
    rows = [row("bf16", 1.0, None, **texts), row("<i>other</i>", 2.0, 20.0, **texts)]
    found = Read(page(rows))
    assert "i" in [tag for tag, _ in Read("<p><i>x</i></p>").tags]
    wanted = [(tag, given) for tag, given in found.tags if tag == "i" and given]
    assert not wanted and not [given for tag, given in found.tags if any(name.startswith("on") for name in given)]
    assert all(f"'{name}'" in found.text for name in names) and [tag for tag, _ in found.tags].count("video") == 4
    assert [tag for tag, _ in found.tags].count("i") == len(rows)  # the bars' own


def test_the_page_says_the_speed_up_and_the_quality_of_each_row():
    rows = [ROWS[0], row("fps", 3.0, 25.0, speedup_total=1.5), row("sta", 2.5, 31.0, speedup_total=1.25)]
    found = Read(page(rows))
    head, *body = found.table
    shown = [dict(zip(head, cells, strict=True)) for cells in body]
    assert [line["Speed-up"] for line in shown] == ["1.00x", "3.00x", "2.50x"]
    assert [line["PSNR, dB"] for line in shown] == ["-", "25.0", "31.0"]
    assert [line["Denoise, s"] for line in shown] == ["12.00", "4.00", "4.80"]
    bars = re.findall(r"denoising ([\d.]+) s, ([\d.]+)x", found.text)
    assert bars == [("12.00", "1.00"), ("4.00", "3.00"), ("4.80", "2.50")]
    spots = [float(given["cx"]) for tag, given in found.tags if tag == "circle"]
    assert len(spots) == 2 and spots[0] > spots[1]  # to the right: faster


def test_a_row_takes_no_other_file_into_the_page(tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_bytes(b"secret" * 10)
    with refuses(BAD_INPUT, "id_rsa"):
        page([row("bf16", 1.0, None, video=str(secret))])
    assert "video" not in [tag for tag, _ in Read(page([row("bf16", 1.0, None, video=str(tmp_path / "no.mp4"))])).tags]


def test_a_profile_of_a_method_that_is_not_known_has_a_colour():
    assert "other" in page([row("bf16", 1.0, None), row("other", 2.0, 20.0)])


def test_charts_place_points_by_value():
    svg = charts.scatter([charts.Point("a", 1, 10, "red"), charts.Point("b<", 2, 20, "blue")], "x", "y")
    spots = [tuple(map(float, spot)) for spot in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert spots[0][0] < spots[1][0] and spots[0][1] > spots[1][1] and "b&lt;" in svg
    ticks = re.findall(
        r'class="tick"[^>]*middle">([^<]*)<', charts.lines([("a", "red", [1.0, 2.0, 3.0, 4.0])], "x", "y")
    )
    assert ticks == ["1", "2", "3", "4"]  # of steps there are no halves
    names = charts.scatter([charts.Point(name, 1, 10 + i / 9, "red") for i, name in enumerate("abc")], "x", "y")
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="(?:start|end)">[abc]<', names))
    assert len(heights) == 3 and all(b - a > 11 for a, b in pairwise(heights))
    places = {"a long name (1)": (1, 10), "b": (1.25, 10), "c": (2, 20)}
    near = charts.scatter([charts.Point(name, *place, "red") for name, place in places.items()], "x", "y")
    _, (x, y), _ = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', near)
    left, base = re.search(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start">a long', near).groups()
    assert float(left) < float(x) < float(left) + 90 and abs(float(base) - 4 - float(y)) > 8  # not over another's point
    crowd = charts.scatter([charts.Point(f"n{i}", 1, 10, "red") for i in range(300)], "x", "y")
    heights = [float(y) for y in re.findall(r'y="(-?[\d.]+)" text-anchor="(?:start|end)">n', crowd)]
    assert 5 < len(heights) < 30 and min(heights) > 0 and crowd.count("<title>n") == 300  # what finds no room has a tip
    assert charts.scatter([], "x", "y") == "" and charts.lines([("a", "red", [1.0])], "x", "y") == ""


def test_a_legend_lies_under_its_chart():
    """With many names it would lie over the curves."""
    names = [(f"curve number {i}", "red") for i in range(9)]
    chart = charts.lines([(name, colour, [9.0, 9.0]) for name, colour in names], "step", "loss")
    text = charts.document(chart, names)
    bottom = max(float(y) for points in re.findall(r'points="([^"]+)"', text) for y in re.findall(r",([\d.]+)", points))
    axis = max(float(y) for y in re.findall(r'class="tick" x="[\d.]+" y="([\d.]+)"', text))
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" fill="red">curve', text)]
    shown = float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', text)[1])
    assert len(heights) == 9 and bottom < axis < min(heights) - 9 and max(heights) < shown


def test_text_and_markdown_name_setting_and_place():
    lines = table(ROWS)
    assert "64x48" in lines[0] and "GPU" in lines[1] and lines[-1].split()[0] == "fps" and "3.00x" in lines[-1]
    text = markdown([*ROWS, row("fps", 2.0, 20.0, device="other GPU")])
    assert text.count("\n1. ") == 1 and "\n2. " in text and "other GPU" in text


def test_each_setting_names_its_prompt():
    """Quality is that of one prompt. Random weights have a random one."""
    rows = [*ROWS, row("bf16", 1.0, None, prompt="a dog"), row("fps", 2.0, 20.0, prompt="a dog")]
    text = markdown(rows)
    first, second = (line for line in text.splitlines() if line[:2] in ("1.", "2."))
    assert "cat" in first and "dog" not in first and "dog" in second
    items = page(rows).split("<ol>")[1].split("</ol>")[0].split("</li>")
    assert "cat" in items[0] and "dog" in items[1] and "cat" in table(ROWS)[0]
    assert "cat" not in "\n".join(table([row("bf16", 1.0, None, random_weights=True)]))


def test_what_leaves_keys_out_is_said_beside_the_speed_up():
    dense = PROFILE | {"profile": "late", "density": 1.0}
    rows = [ROWS[0], row("fps", 3.0, 25.0, profiles=[PROFILE, dense])]
    said = [line for line in table(rows) if "tile" in line]
    assert said == ["paper, early: 2 steps, density 25.0%, tile 3 x 5 x 8, window 1 x 3 x 3"]
    assert "| fps | early | 2 | fps | cpu | 25.0% | 3 x 5 x 8 | 1 x 3 x 3 |" in markdown(rows)


def test_what_a_row_was_made_with_is_said_beside_the_speed_up(tmp_path):
    """A step that is skipped, or has no guidance, is not attention's doing."""
    baseline = row("bf16", 1.0, None, linear="bf16", cache="none", cfg_until=1.0, fused=False)
    ours = {"linear": "fp8", "cache": "first-block", "cfg_until": 0.5, "fused": False}
    said = "linear fp8, cache first-block, cfg-until 0.5, exact"
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (baseline, row("fps", 3.0, 25.0, **ours))))
    rows = read_rows(path)
    assert [cells(each)["options"] for each in rows] == ["-", said]
    assert f"fps: {said}" in table(rows) and f"| {said} |" in markdown(rows)
    assert f"fps: {said}." in page(rows)
    plain = [row("bf16", 1.0, None), row("fps", 3.0, 25.0, linear="bf16", cache="none", cfg_until=1.0, fused=True)]
    assert cells(plain[1])["options"] == "-" and "fps: " not in page(plain)


def test_rows_of_several_settings_are_told_apart():
    """Bars are as long as the slowest of their own setting; every chart, row and video says which setting it is of."""
    other = {"device": "other GPU", "command": "fpsgen bench --other", "steps_s": [9.0, 9.0]}
    rows = [*ROWS, row("bf16", 0.5, None, **other), row("sta", 2.0, 20.0, **other, profiles=[PROFILE])]
    text = page(rows)
    found = Read(text)
    head, *body = [line for line in found.table if "Setting" in line or line[0] in ("bf16 (baseline)", "fps", "sta")]
    assert [line[head.index("Setting")] for line in body[:4]] == ["1", "1", "2", "2"] and body[-1][1] == "2"
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%;background", text)]
    assert [sum(widths[i : i + 4]) for i in (0, 8)] == pytest.approx([100, 100], abs=0.1)
    assert "Seconds per step: setting 1" in text and "Seconds per step: setting 2" in text and ">sta (2)<" in text
    assert "fpsgen bench --other" in text and text.count("Made by") == 2
    assert "setting 1" not in page(ROWS) and "Setting" not in Read(page(ROWS)).table[0]


@pytest.mark.parametrize(
    ("method", "keys"), [("bf16", ["-", "all"]), ("sage", ["3 x 5 x 8", "all"]), ("svg", ["3 x 5 x 8", "chosen"])]
)
def test_a_window_is_named_where_there_is_one(method, keys):
    """A report holds the whole grid as the window of methods without one."""
    (line,) = profile_cells(row(method, 2.0, 20.0, profiles=[PROFILE | {"method": method}]))
    assert line[6:8] == keys


def test_one_comparison_also_has_the_bands_of_others():
    """There is no chart of a single point to stand beside."""
    for shown in (page(ROWS), markdown(ROWS), "\n".join(table(ROWS))):
        assert "21.4 dB" in shown and "LPIPS (AlexNet)" in shown
    assert "LPIPS (AlexNet)" not in page([row("bf16", 1.0, None), row("fps", 3.0, None)])


def test_a_difference_that_ffmpeg_does_not_see_is_no_missing_figure():
    assert cells(row("fps", 3.0, 90.0, xpsnr_db=EQUAL_DB))["xpsnr"] == "equal"


def test_an_ffmpeg_without_a_measure_does_not_call_videos_equal():
    assert cells(row("fps", 3.0, 20.0, xpsnr_db=None))["xpsnr"] == "-" and cells(ROWS[0])["xpsnr"] == "-"


def test_rows_of_several_files_become_one_page(tmp_path, capsys):
    import json

    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps(x) + "\n" for x in ROWS))
    installed = row("fps", 2.0, 20.0, device="other GPU", commit="")  # outside of a checkout there is no commit
    second.write_text(json.dumps(installed) + "\n")
    target = tmp_path / "both.html"
    assert run(["report", str(first), str(second), "-o", str(target)]) == OK
    assert "other GPU" in target.read_text() and "other GPU" in capsys.readouterr().out
    assert run(["report", str(first), "-o", str(target)]) == DISK  # never replaced without --overwrite


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "{}", '{"schema": "fpsgen.bench/2"}', "[" * 100_000, "\x00", '{"schema": 1}']
)
def test_files_that_are_no_rows_are_refused(tmp_path, text, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    assert run(["report", str(path), "-o", str(tmp_path / "x.html")]) == BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) == 2 and not (tmp_path / "x.html").exists()


def test_a_row_with_one_wrong_value_is_refused(tmp_path):
    import json

    wrong = {"speedup_denoise": "fast", "stages_s": {}, "step_s": {"median": None}, "seed": True, "density": [1]}
    wrong |= {"guidance": "5", "video": 5, "steps_s": 6, "peak_memory": 5, "psnr_db": {}, "fused": "x", "steps": 1e400}
    wrong |= {"stlpips": "low", "bf16_backend": 5, "profiles": [PROFILE, 5]}
    profiles = {
        "profile": None,
        "steps": "two",
        "density": "x",
        "tile": [3, 5],
        "window": 5,
        "step_s": {},
        "kernel": {},
    }
    rows = [ROWS[0] | {key: value} for key, value in wrong.items()]
    rows += [ROWS[0] | {"profiles": [PROFILE | {key: value}]} for key, value in profiles.items()]
    path = tmp_path / "a.jsonl"
    for line in rows:
        path.write_text(json.dumps(line))
        assert run(["report", str(path), "-o", str(tmp_path / "x.html")]) == BAD_INPUT, line
    path.write_text(json.dumps(ROWS[0] | {"profiles": [PROFILE, PROFILE | {"density": None, "window": None}]}))
    assert run(["report", str(path), "-o", str(tmp_path / "x.html")]) == OK
