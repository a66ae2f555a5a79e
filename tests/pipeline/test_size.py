"""Sizes and lengths: what Wan can make, and the nearest of what it cannot."""

from __future__ import annotations

import itertools

import pytest
from refusal import refuses

from fpsgen.errors import USAGE
from fpsgen.models.catalog.geometry import Geometry
from fpsgen.pipeline.size import fit_aspect, nearest_trained, resolve_frames, resolve_size

NAMED = {"480p": (832, 480), "720p": (1280, 720)}


def size(res=None, aspect=None):
    return resolve_size(res, aspect, (832, 480), NAMED, "wan")


def test_sizes():
    assert size() == (832, 480)
    assert size("720p") == (1280, 720)
    assert size((640, 384)) == (640, 384)


@pytest.mark.parametrize(
    ("res", "aspect", "wanted"),
    [
        ("480p", (16, 9), (832, 480)),
        ("480p", (9, 16), (480, 832)),
        ("480p", (1, 1), (624, 624)),
        ("720p", (16, 9), (1280, 720)),
        ("720p", (9, 16), (720, 1280)),
        ("720p", (1, 1), (960, 960)),
        ("720p", (4, 3), (1104, 832)),
        ("720p", (3, 4), (832, 1104)),
        (None, (9, 16), (480, 832)),
    ],
)
def test_ratios(res, aspect, wanted):
    assert size(res, aspect) == wanted


def test_every_ratio_gives_a_size_that_works():
    ratios = [(w, h) for w in range(1, 22) for h in range(1, 22) if 1 / 4 <= w / h <= 4]
    for base, aspect in itertools.product((*NAMED.values(), (256, 160)), ratios):
        width, height = fit_aspect(*base, aspect)
        assert width % 16 == 0 and height % 16 == 0
        assert 0.8 < width * height / (base[0] * base[1]) < 1.2, (base, aspect)
        assert 0.85 < width / height / (aspect[0] / aspect[1]) < 1.15, (base, aspect)


def test_sides_that_do_not_fit_name_the_nearest():
    with refuses(USAGE, remedy="--res 848x480"):
        size((850, 475))


def test_a_name_that_the_model_lacks_lists_what_it_has():
    with refuses(USAGE, remedy="480p, 720p"):
        size("1080p")


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [(5, 16, 81), (2, 16, 33), (0.01, 16, 1), (1, 16, 17), (3.3, 24, 81), (1, 1, 1)]
)
def test_seconds(seconds, fps, frames):
    assert resolve_frames(None, seconds, fps, 81) == frames


def test_frames():
    assert [resolve_frames(n, None, 16, 81) for n in (None, 1, 5, 33, 81)] == [81, 1, 5, 33, 81]


@pytest.mark.parametrize(("frames", "near"), [(80, "81 (or 77)"), (82, "81 (or 85)"), (2, "1 (or 5)"), (4, "5 (or 1)")])
def test_lengths_that_do_not_fit_name_the_nearest(frames, near):
    with refuses(USAGE, remedy=near):
        resolve_frames(frames, None, 16, 81)


def test_token_grid():
    wan, coarse = Geometry(8, 4, (1, 2, 2), 1024), Geometry(16, 4, (2, 2, 1), 1024)
    assert wan.token_grid(1280, 720, 81) == (21, 45, 80) and wan.token_grid(832, 480, 81) == (21, 30, 52)
    assert coarse.token_grid(1280, 704, 77) == (10, 22, 80)


def test_sizes_are_scaled_from_the_trained_size_nearest_in_shape():
    trained = ((256, 144), (256, 160))
    assert nearest_trained((1280, 720), trained) == (256, 144)
    assert nearest_trained((1280, 800), trained) == (256, 160)
    assert nearest_trained((256, 160), trained) == (256, 160)
    assert nearest_trained((640, 384), ()) == (640, 384)
    assert nearest_trained((640, 400), [(128, 80), (256, 160), (64, 40)]) == (256, 160)  # the largest of equal shape
