"""PNG, GIF and WebP: whole, true to their frames, with the recipe inside; or absent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusal import refuses

from fpsgen import pictures
from fpsgen.errors import BAD_INPUT, DISK
from fpsgen.video import frames_of, is_whole, read_frames, read_recipe, write_video

RECIPE = {"schema": "test/1", "prompt": 'a "cat" é 😀 \n', "negative": "é=;#" * 30_000, "seed": 2**60}


def moving(count: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A gradient with a bar that moves; the last two frames are equal, as writers join such."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    for index in range(count):
        place = 4 * min(index, count - 2)
        frames[index, :, place : place + 4, 1] = 220
    return frames


def test_one_frame_is_a_picture(tmp_path):
    frame = np.random.default_rng(0).integers(0, 255, (31, 47, 3), np.uint8)
    path = write_video(frame[None], tmp_path / "a.png", 16, RECIPE)
    assert read_recipe(path) == RECIPE and os.listdir(tmp_path) == ["a.png"]
    assert np.array_equal(read_frames(path)[0], frame[None])
    with pytest.raises(FileExistsError):
        write_video(frame[None], path, 16)
    assert read_recipe(write_video(frame[None], path, 16, None, overwrite=True)) is None
    (tmp_path / "b.png").write_text("hello")
    with refuses(BAD_INPUT):
        read_recipe(tmp_path / "b.png")


@pytest.mark.parametrize("kind", pictures.ANIMATIONS)
@pytest.mark.parametrize("fps", [16, 24, 7])
def test_an_animation_lasts_as_long_as_the_video_and_shows_its_frames(tmp_path, kind, fps):
    frames = moving()
    path = write_video(frames, tmp_path / f"a{kind}", fps, RECIPE)
    assert os.listdir(tmp_path) == [f"a{kind}"] and read_recipe(path) == RECIPE
    assert abs(pictures.shown_ms(path) - len(frames) * 1000 / fps) <= 5
    assert is_whole(path, len(frames), fps) and not is_whole(path, len(frames) + 1, fps)
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
        for index in (0, 3):
            picture.seek(index)
            away = np.abs(np.asarray(picture.convert("RGB")).astype(int) - frames[index])
            assert away.mean() < 6
    with pytest.raises(FileExistsError):
        write_video(frames, path, fps)
    assert read_recipe(write_video(frames, path, fps, None, overwrite=True)) is None


def test_an_animation_that_is_cut_short_is_not_whole(tmp_path):
    for kind in pictures.ANIMATIONS:
        path = write_video(moving(), tmp_path / f"a{kind}", 16)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        assert not is_whole(path, 9, 16), kind
    assert pictures.shown_ms(tmp_path / "absent.gif") == 0


def test_a_file_that_came_out_wrong_is_not_left(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "shown_ms", lambda path: 1)
    with refuses(DISK):
        write_video(moving(), tmp_path / "a.gif", 16)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [".png", *pictures.ANIMATIONS])
def test_pictures_are_scaled_as_videos_are(tmp_path, kind):
    path = write_video(moving(), tmp_path / f"a{kind}", 16, None, False, (96, 64))
    with Image.open(path) as picture:
        assert picture.size == (96, 64)


def test_pictures_keep_their_shape():
    frame = np.full((32, 48, 3), 200, np.uint8)
    assert pictures.scaled(frame, (49, 32)).min() == 200  # as good as the same shape
    upright = pictures.scaled(frame, (48, 128))
    assert (upright[48:80] == 200).all() and not upright[:48].any() and not upright[80:].any()
    wide = pictures.scaled(frame, (192, 32))
    assert (wide[:, 72:120] == 200).all() and not wide[:, :72].any() and not wide[:, 120:].any()


def test_a_gif_reads_as_a_video(tmp_path):
    path = write_video(moving(), tmp_path / "a.gif", 10)
    assert next(frames_of(Path(path))).shape == (32, 48, 3)


def test_a_sheet_shows_frames_row_by_row():
    frames = [np.full((20, 40, 3), 10 * index, np.uint8) for index in range(5)]
    page = pictures.sheet(frames, columns=2, width=20)
    assert page.shape == (3 * 14 + 4, 2 * 24 + 4, 3)
    assert [int(page[row * 14 + 9, column * 24 + 14, 0]) for row in range(3) for column in range(2)] == [
        0, 10, 20, 30, 40, 255,
    ]  # fmt: skip
