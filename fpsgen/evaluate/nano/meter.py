"""Reads colour, subject, motion and background back from a clip's pixels, deterministically.

A pixel counts for the palette colour nearest to it, if near enough. The subject's colour is the one that covers most
area after an erosion; its mask gives a path (centre and area over time), and the path gives the motion. The subject is
the template (rendered, cropped to its bounding box) that correlates best. The surfboard has a colour of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.evaluate.nano import world
from fpsgen.evaluate.nano.world import BACKGROUNDS, BOARD, COLOURS, HEIGHT, OUTLINE, PLAIN, SUBJECTS, WIDTH, Scene

SCENERY = [
    OUTLINE,
    *PLAIN.values(),
    (175, 220, 245),
    (200, 231, 248),
    (225, 242, 250),
    (165, 212, 242),
    (195, 226, 246),
    (60, 150, 190),
    (45, 120, 165),
    (30, 95, 140),
    (110, 185, 212),
    (240, 250, 252),
    (255, 236, 150),
    (240, 238, 205),
    (14, 16, 48),
    (26, 26, 66),
    (38, 36, 84),
    (140, 200, 90),
    (118, 180, 76),
    (95, 160, 62),
]
NEAR = 0.06  # squared RGB distance, RGB in [0, 1]
CROP = 48


@dataclass(frozen=True)
class Reading:
    """What a clip shows; None where nothing solid was found."""

    colour: str
    background: str
    subject: str | None
    motion: str | None

    def agrees(self, scene: Scene) -> dict[str, bool]:
        axes = ("subject", "colour", "motion", "background")
        return {axis: getattr(self, axis) == getattr(scene, axis) for axis in axes}


def _erode(x: Tensor) -> Tensor:
    return -F.max_pool2d(-x, 3, 1, 1)


class Meter:
    """Calling it with video [B, 3, T, H, W] in [-1, 1] gives a list of `Reading`."""

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        colours = [*COLOURS.values(), BOARD, *SCENERY]
        self.palette = torch.tensor(colours, device=device).float() / 255
        renderer = world.Renderer(device, seed=4242)
        crops, labels = [], []
        for index, subject in enumerate(SUBJECTS):
            motions = ("left", "right", "left", "right", "growing", "growing", "surfing", "surfing")
            scenes = [Scene(subject, "red", m, "sea" if m == "surfing" else "black") for m in motions]
            sharp = renderer.render(scenes, times=(0.0, 0.2, 0.45, 0.7, 1.0))[0]
            soft = F.avg_pool3d(sharp, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
            for video in (sharp, soft):
                for mask in self._masks(video)[0].flatten(0, 1):
                    crop = self._crop(mask)
                    if crop is not None:
                        crops.append(crop)
                        labels.append(index)
        self.templates, self.labels = torch.stack(crops), torch.tensor(labels, device=device)
        moments = tuple(k / 8 for k in range(9))
        places = [renderer.render([Scene("ball", "red", "up", b)] * 3, times=moments)[0] for b in BACKGROUNDS]
        self.places = torch.stack([self._thumbnail(v).mean(0) for v in places])

    def _thumbnail(self, video: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(video.float().median(2).values, (10, 16)).flatten(1)

    def _masks(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Masks of the dominant subject colour [B, T, H, W], its index [B], the board's median area [B]."""
        masks, which, boards = [], [], []
        for clip in video:
            pixels = ((clip.float() + 1) / 2).permute(1, 2, 3, 0)
            distance = torch.stack([(pixels - c).square().sum(-1) for c in self.palette])
            nearest = torch.where(distance.min(0).values < NEAR, distance.argmin(0), -1)
            layers = torch.stack([(nearest == k).float() for k in range(len(COLOURS) + 1)])
            solid = _erode(_erode(layers))
            boards.append(_erode(layers[-1]).sum((1, 2)).median())
            best = solid[:-1].sum((1, 2, 3)).argmax()
            which.append(best)
            masks.append(layers[best] * F.max_pool2d(solid[best][:, None], 7, 1, 3)[:, 0])  # specks off the core go
        return torch.stack(masks), torch.stack(which), torch.stack(boards)

    def _crop(self, mask: Tensor) -> Tensor | None:
        """The mask, scaled so that its bounding box fills a square, softened, as a vector of mean 0 and length 1."""
        if mask.sum() < 40:
            return None
        ys, xs = mask.nonzero(as_tuple=True)
        (top, bottom), (left, right) = (ys.min(), ys.max() + 1), (xs.min(), xs.max() + 1)
        half = torch.maximum(bottom - top, right - left) / 2 + 1
        unit = (torch.arange(CROP, device=self.device) + 0.5) / CROP * 2 - 1
        x = ((left + right) / 2 + unit * half) / WIDTH * 2 - 1
        y = ((top + bottom) / 2 + unit * half) / HEIGHT * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
        crop = F.avg_pool2d(F.grid_sample(mask[None, None], grid, align_corners=False), 3, 1, 1).flatten()
        crop = crop - crop.mean()
        return crop / crop.norm().clamp_min(1e-6)

    def _subject(self, masks: Tensor) -> str | None:
        votes = torch.zeros(len(SUBJECTS), device=self.device)
        for mask in masks:
            crop = self._crop(mask)
            if crop is not None:
                likeness = self.templates @ crop
                votes += torch.stack([likeness[self.labels == k].max() for k in range(len(SUBJECTS))])
        return SUBJECTS[int(votes.argmax())] if votes.max() > 0 else None

    @staticmethod
    def _motion(x: Tensor, y: Tensor, area: Tensor, board: float) -> str:
        """Path [T] in pixels -> name of the motion, or "still"."""
        x, y, area = (F.avg_pool1d(v[None, None], 3, 1)[0, 0] for v in (x, y, area))
        dx, dy = (float(v[-3:].mean() - v[:3].mean()) for v in (x, y))
        growth = math.log(float(area[-3:].mean() / area[:3].mean()))
        span_x, span_y = float(x.max() - x.min()), float(y.max() - y.min())
        travel_y = float(y.diff().abs().sum())
        swept = 0.5 * abs(float((x * y.roll(-1) - x.roll(-1) * y).sum()))
        if board > 60:
            return "surfing"
        if abs(growth) > 1.0 and max(abs(dx), abs(dy)) < 45:
            return "growing" if growth > 0 else "shrinking"
        if swept > 0.4 * math.pi * 30**2 and min(span_x, span_y) > 30:
            return "circling"
        if travel_y > 1.35 * abs(dy) + 15 and span_y > 25 and span_x < 30:
            return "bouncing"
        if max(abs(dx), abs(dy)) < 25:
            return "still"
        return ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("up" if dy < 0 else "down")

    @torch.no_grad()
    def __call__(self, video: Tensor) -> list[Reading]:
        masks, which, boards = self._masks(video)
        thumbnails = self._thumbnail(video)
        background = (thumbnails[:, None] - self.places).square().sum(-1).argmin(1).tolist()
        rows = torch.arange(HEIGHT, device=self.device).float().view(-1, 1)
        columns = torch.arange(WIDTH, device=self.device).float()
        readings = []
        for mask, colour, board, place in zip(masks, which.tolist(), boards.tolist(), background, strict=True):
            area = mask.sum((1, 2))
            seen = area > 25
            subject = motion = None
            if int(seen.sum()) >= 20:
                mask, area = mask[seen], area[seen]
                x, y = (mask * columns).sum((1, 2)) / area, (mask * rows).sum((1, 2)) / area
                motion = self._motion(x.cpu(), y.cpu(), area.cpu(), board)
                subject = self._subject(mask[area.topk(min(9, len(area))).indices])
            readings.append(Reading(list(COLOURS)[colour], BACKGROUNDS[place], subject, motion))
        return readings


def score(readings: list[Reading], scenes: list[Scene]) -> dict[str, float]:
    """Share of clips in percent whose reading agrees, per axis; `direction` is motion among left, right, up, down."""
    agree = [r.agrees(s) for r, s in zip(readings, scenes, strict=True)]
    share = {axis: 100 * sum(a[axis] for a in agree) / len(agree) for axis in agree[0]}
    moving = [a["motion"] for a, s in zip(agree, scenes, strict=True) if s.motion in ("left", "right", "up", "down")]
    share["direction"] = 100 * sum(moving) / max(1, len(moving))
    share["all"] = 100 * sum(all(a.values()) for a in agree) / len(agree)
    return {axis: round(value, 1) for axis, value in share.items()} | {"clips": len(agree)}
