"""Figures of whole videos, prompts that are read back, and the names that VBench looks for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from refusal import refuses

from fpsgen.errors import DISK, ENVIRONMENT, FpsgenError
from fpsgen.evaluate import ffmpeg_metrics, stlpips
from fpsgen.evaluate.nano.captions import plain
from fpsgen.evaluate.nano.prompts import agreement, unseen
from fpsgen.evaluate.nano.world import Renderer, Scene
from fpsgen.evaluate.quality import QUALITY, flicker, quality
from fpsgen.evaluate.vbench import export
from fpsgen.ffmpeg import Done

ROOT = Path(__file__).resolve().parents[2]


def frames(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)


def test_quality_of_a_reference_and_of_equal_frames():
    x = frames()
    alone = quality(x, None)
    assert set(alone) == set(QUALITY) and [key for key, value in alone.items() if value is not None] == ["flicker"]
    same = quality(x, x)
    assert same["psnr_db"] is None and same["ssim"] == 1
    assert 5 < quality(x, x[::-1])["psnr_db"] < 12


def test_flicker_sees_what_alternates_and_not_what_fades():
    level = np.arange(0, 50, 10, dtype=np.uint8)[:, None, None, None]
    assert flicker(np.broadcast_to(level, (5, 8, 8, 3))) == pytest.approx(0, abs=1e-3)
    level = np.array([0, 10, 0, 10, 0], np.uint8)[:, None, None, None]
    assert flicker(np.broadcast_to(level, (5, 8, 8, 3))) == pytest.approx(20, abs=1e-3)
    spots = np.zeros((5, 8, 8, 3), np.uint8)
    spots[1::2, :4] = 10  # half of the picture alternates
    assert flicker(spots) == pytest.approx(10, abs=1e-3)
    assert flicker(frames(2)) == 0


def test_stlpips_is_there_or_named_as_missing(monkeypatch):
    x = frames()
    if stlpips.available():
        assert stlpips.stlpips(x, x) == 0 < stlpips.stlpips(x, x[::-1])
    monkeypatch.setattr(stlpips, "NEEDED", ("no_such_package",))
    assert stlpips.stlpips(x, x) is None and quality(x, x)["stlpips"] is None


def test_an_stlpips_that_cannot_be_loaded_is_no_missing_one(monkeypatch):
    def broken():
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(stlpips, "NEEDED", ("json",))
    monkeypatch.setattr(stlpips, "_network", broken)
    for ask in (stlpips.available, lambda: stlpips.stlpips(frames(), frames())):
        with pytest.raises(FpsgenError, match="torchvision::nms") as caught:
            ask()
        assert caught.value.code == ENVIRONMENT


def test_a_clip_is_read_against_its_own_prompt():
    scene = Scene("ball", "red", "left", "grass")
    clip = (Renderer(seed=5).render([scene])[0][0].permute(1, 2, 3, 0) + 1) * 127.5
    pixels = clip.round().clamp(0, 255).byte().numpy()
    assert all(agreement(plain(scene), pixels).values())
    other = agreement(plain(Scene("ball", "blue", "left", "grass")), pixels)
    assert other == {"subject": True, "colour": False, "motion": True, "background": True}
    assert agreement("a cat on a sofa", pixels) is None and agreement(plain(scene), pixels[:9]) is None


def test_the_sample_prompts_are_held_out():
    lines = (ROOT / "prompts" / "nano-held-out.txt").read_text().splitlines()
    assert [line for line in lines if line[0] != "#"] == [plain(scene) for scene in unseen(24)]
    assert all(scene.held_out for scene in unseen(24))


def test_vbench_finds_videos_by_prompt_and_number(tmp_path):
    rows = []
    for number, prompt in enumerate(["a cat.", "either/or", "a cat.", "x" * 300]):
        video = tmp_path / f"{number}.mp4"
        video.write_bytes(bytes([number]))
        rows.append({"variant": "fps", "prompt": prompt, "video": str(video)})
    for _ in range(2):  # again over what is there
        (folder,) = export(rows, tmp_path / "vbench")
    assert (folder / "a cat.-0.mp4").read_bytes() == b"\0" and (folder / "a cat.-1.mp4").read_bytes() == b"\2"
    prompts = json.loads((tmp_path / "vbench" / "fps.json").read_text())
    assert set(prompts) == {path.name for path in folder.iterdir()} and len(prompts) == 4
    for name, prompt in prompts.items():
        assert (folder / name).read_bytes()[0] in [n for n, row in enumerate(rows) if row["prompt"] == prompt]


def test_the_reference_decides_where_an_error_shows(tmp_path):
    """XPSNR weighs an error more where the reference is flat: noise on a flat half is worse than its absence."""
    if ffmpeg_metrics.xpsnr(*[_y4m(tmp_path / "x.y4m", np.zeros((2, 64, 64), np.uint8))] * 2) is None:
        pytest.skip("ffmpeg has no XPSNR")
    random = np.random.default_rng(0)
    flat = np.full((2, 256, 256), 128, np.uint8)
    flat[:, :, 128:] += random.integers(-60, 60, (256, 128)).astype(np.uint8)
    noisy = flat.copy()
    noisy[:, :, :128] += random.integers(-30, 30, (256, 128)).astype(np.uint8)
    reference, video = _y4m(tmp_path / "a.y4m", flat), _y4m(tmp_path / "b.y4m", noisy)
    assert ffmpeg_metrics.xpsnr(video, reference) < ffmpeg_metrics.xpsnr(reference, video) - 5


def _y4m(path: Path, luma: np.ndarray) -> Path:
    """A grey video without compression. luma: uint8 [F, H, W]."""
    frames, height, width = luma.shape
    grey = bytes([128]) * (height * width // 2)
    path.write_bytes(
        f"YUV4MPEG2 W{width} H{height} F16:1 C420jpeg\n".encode()
        + b"".join(b"FRAME\n" + luma[i].tobytes() + grey for i in range(frames))
    )
    return path


@pytest.mark.parametrize(("said", "shown"), [("-3.0591", -3.06), ("31.25", 31.25), ("inf", ffmpeg_metrics.EQUAL_DB)])
def test_xpsnr_of_videos_with_nothing_in_common_is_negative(monkeypatch, said, shown):
    """Its errors are weighted, so they can exceed the range of luma."""
    text = f"n: 1  XPSNR y: 9.0\n\nXPSNR average, 33 frames  y: {said}  u: 12.1  v: -0.8  (minimum: -3.0)\n"
    monkeypatch.setattr(ffmpeg_metrics, "_filters", lambda: {"xpsnr"})
    monkeypatch.setattr(ffmpeg_metrics.ffmpeg, "run", lambda *args, **more: Done(0, text.encode(), "", False))
    assert ffmpeg_metrics.xpsnr("a.mp4", "b.mp4") == shown


def test_a_comparison_that_dies_without_a_word_is_no_fault_of_the_videos(monkeypatch, tmp_path):
    """As where ffmpeg's log does not fit on the disk."""
    monkeypatch.setattr(ffmpeg_metrics, "_filters", lambda: {"libvmaf"})
    monkeypatch.setattr(ffmpeg_metrics.ffmpeg, "run", lambda *args, **more: Done(-25, b"", "", False))
    with refuses(DISK, "a.mp4"):
        ffmpeg_metrics.vmaf("a.mp4", "b.mp4")
    monkeypatch.setattr(ffmpeg_metrics.tempfile, "tempdir", str(tmp_path / "gone"))
    with refuses(DISK, remedy="TMPDIR"):
        ffmpeg_metrics.vmaf("a.mp4", "b.mp4")
