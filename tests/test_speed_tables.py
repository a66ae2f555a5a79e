"""Cells of the tables of whole videos, from rows made by hand."""

import json

from tools.speed_tables import bench, main, waterfall, whole


def row(method, denoise, profiles, fused):
    steps = {"median": denoise / 4, "min": 0.5, "max": 9.0}
    return {
        "model": "wan2.1-14b",
        "width": 1280,
        "height": 720,
        "method": method,
        "schedule": f"paper-{method}",
        "linear": "fp8" if fused else "bf16",
        "fused": fused,
        "step_s": steps,
        "stages_s": {"denoise": {"median": denoise}},
        "schema": "fpsgen.bench/2",
        "attention_share": 0.25,
        "speedup_denoise": 40 / denoise,
        "steps": 4,
        "video": "/somewhere/fps.mp4",
        "profiles": [
            {
                "profile": name,
                "method": method,
                "density": 0.2 if fused else 1.0,
                "tile": [3, 5, 8],
                "window": [1, 3, 3],
            }
            | {"step_s": {"median": seconds}}
            for name, seconds in profiles.items()
        ],
        "density": 0.21,
        "peak_memory": {"cuda_bytes": 4e9},
        "psnr_db": None,
        "ssim": None,
        "vmaf": None,
    }


def test_a_mean_weighs_profiles_by_their_steps_and_lacks_where_one_did_not_run():
    dense = row("bf16", 40.0, {"early": 10.0, "middle": 10.0}, False)
    ours = row("fps", 8.0, {"early": 1.0, "middle": 2.0, "late": 4.0}, True)
    first, second = bench([dense, ours])
    assert (first["how"], first["mean"], first["forwards"]) == ("diffusers as it comes", "", "5.000 / 5.000 / -")
    assert second["mean"] == "1.100"  # (.2 * 1 + .6 * 2 + .2 * 4) / 2
    assert second["times"] == "5.00x" and second["share"] == "25%" and second["kept"] == "21%"
    assert (first["windows"], second["windows"]) == ("", "3 x 5 x 8: 1 x 3 x 3 / 1 x 3 x 3 / 1 x 3 x 3")
    assert bench([row("svg", 8.0, {"early": 1.0}, True)])[0]["windows"] == "3 x 5 x 8: chosen"
    assert second["how"] == "fps, paper, linear fp8" and second["what"] == "Wan2.1-14B shape, 720p"


def test_the_baselines_attention_is_named_and_no_place_of_a_video():
    (first,) = bench([row("bf16", 40.0, {"early": 10.0}, False) | {"bf16_backend": "cudnn"}])
    assert first["how"] == "diffusers as it comes, attention by cudnn" and first["video"] == "fps.mp4"


def test_rows_of_another_setting_stay(tmp_path):
    def write(name, *changes):
        rows = [row("bf16", 4.0, {"early": 1.0}, False), row("fps", 2.0, {"early": 0.5}, True)]
        (tmp_path / name).write_text("".join(json.dumps(r | c | {"mark": name}) + "\n" for c in changes for r in rows))
        assert main(["bench", str(tmp_path / name), "--figures", str(tmp_path)]) == 0
        return [(r["mark"], r["steps"], r["height"]) for r in json.loads((tmp_path / "bench.json").read_text())["rows"]]

    kept = [("a", 4, 480), ("a", 4, 720), ("a", 50, 720)]
    assert write("a", {}, {"steps": 50}, {"height": 480}) == [each for each in kept for _ in range(2)]
    kept[1] = ("b", 4, 720)
    assert write("b", {}) == [each for each in kept for _ in range(2)]
    assert len(write("c", {"bf16_backend": "fa3", "ssim": 0.5})) == 8
    last = json.loads((tmp_path / "bench.json").read_text())["rows"][-3]
    assert last["ssim"] == 0.5 and last["ssim_text"] == "0.500"  # what was measured stays a number


def test_what_slow_steps_take_more_is_named():
    profiles = ["early", "early", "early", "middle", "middle", "middle", "late"]
    seconds = [8.0, 2.0, 2.0, 3.0, 3.0, 3.5, 1.0]
    report = {
        "created": "2026-01-01",
        "stages_s": {"import": 1.0, "load": 2.0, "text": 0.5, "denoise": 22.5, "vae": 1.0, "mux": 1.0},
        "steps_s": seconds,
        "attention": {"steps": [{"profile": name} for name in profiles]},
        "peak_memory": {"cuda_bytes": 2e9},
        "total_s": 28.0,
    }
    cells = whole("720p", {"recipe": {"device": "card", "versions": {}}, "report": report}, "abc")
    assert cells["start"] == "6.0" and cells["loading"] == "3.0" and cells["commit"] == "abc"
    assert cells["forwards"] == "1.000 / 1.500 / 0.500" and cells["mean"] == "1.200"
    for stage in ("import", "load"):
        del report["stages_s"][stage]
    again = whole("720p", {"recipe": {"device": "card", "versions": {}}, "report": report}, "abc")
    assert again["loading"] == "" and again["denoise"] == "22.5"  # a later video of a batch


def test_a_part_is_given_with_its_error():
    common = {"model": "nano", "width": 256, "height": 160, "steps": 6, "density": None, "vae_s": None}
    rows = [
        common
        | {"attention_s": {"median": 3.0}, "error": None}
        | {"stage": "a", "denoise_s": {"median": 4.0}, "faster_denoise": 1.0},
        common
        | {
            "stage": "b",
            "denoise_s": {"median": 2.0},
            "faster_denoise": 2.0,
            "attention_s": {"median": 0.5},
            "error": {"snr_db": 31.25},
        },
    ]
    first, second = waterfall(rows)
    assert (first["rest"], first["error"], first["vae"]) == ("1.00", "", "")
    assert (second["attention"], second["rest"], second["error"]) == ("0.50", "1.50", "31.2")


def test_nano_has_a_table_of_its_own(tmp_path):
    rows = [row("bf16", 4.0, {"early": 1.0}, False), row("fps", 2.0, {"early": 0.5}, True)]
    small = [each | {"model": "nano", "psnr_db": 24.26, "ssim": 0.9, "vmaf": 60.0} for each in rows]
    for name, some in (("a", rows), ("b", small)):
        (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in some), "utf-8")
    assert main(["bench", str(tmp_path / "a"), str(tmp_path / "b"), "--figures", str(tmp_path)]) == 0
    tables = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("bench", "bench-nano")}
    assert [len(table["rows"]) for table in tables.values()] == [2, 2]
    assert tables["bench-nano"]["rows"][1]["psnr_text"] == "24.3" and "psnr_text" not in tables["bench"]["columns"]


def test_what_ran_without_a_baseline_has_no_speed_up():
    alone = row("fps", 8.0, {"early": 1.0}, True) | {"baseline": "fps", "speedup_denoise": 1.0}
    assert bench([alone])[0]["times"] == ""
    assert bench([alone | {"baseline": "bf16", "speedup_denoise": 2.5}])[0]["times"] == "2.50x"
