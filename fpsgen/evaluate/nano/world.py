"""The nano world: short cartoons of one subject that moves over a background, drawn with signed distances.

It is what the embedded nano model is trained on and measured against. A `Scene` names four things
(subject, colour, motion, background); `Renderer` draws scenes as anti-aliased clips of 33 frames, 160x256,
on the device at hand; `captions.py` puts scenes into words. Colours of backgrounds and of the surfboard stay away
from the subjects' palette, so that `meter.py` can read a clip back from its pixels alone.

Units: positions and sizes in pixels, time in [0, 1] over the clip. Video tensors are [B, 3, T, H, W] in [-1, 1].
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fpsgen.evaluate.nano import shapes

HEIGHT, WIDTH, FRAMES, FPS = 160, 256, 33, 16
COLOURS = {
    "red": (220, 30, 40),
    "orange": (245, 130, 20),
    "yellow": (250, 215, 20),
    "green": (20, 150, 50),
    "blue": (25, 70, 225),
    "purple": (130, 40, 180),
    "pink": (250, 120, 190),
    "white": (255, 255, 255),
}
SUBJECTS = ("ball", "square", "triangle", "star", "cat", "fish", "bird", "boat")
MOTIONS = ("left", "right", "up", "down", "bouncing", "circling", "growing", "shrinking", "surfing")
PLAIN = {"gray": (190, 195, 202), "black": (24, 24, 30), "beige": (232, 218, 190), "teal": (120, 185, 185)}
BACKGROUNDS = (*PLAIN, "sea", "night", "grass")
USUAL_COLOUR: dict[str, str] = dict(
    zip(SUBJECTS, ("red", "blue", "green", "yellow", "orange", "orange", "blue", "white"), strict=True)
)
OUTLINE, BOARD = (30, 28, 36), (90, 240, 160)
SEA_LEVEL, WAVE = 104.0, 7.0


@dataclass(frozen=True)
class Scene:
    subject: str
    colour: str
    motion: str
    background: str

    @property
    def held_out(self) -> bool:
        """One sixth of all (subject, colour, motion) is never drawn for training, so that it can be asked for later."""
        return (
            SUBJECTS.index(self.subject) * 5 + list(COLOURS).index(self.colour) * 3 + MOTIONS.index(self.motion) * 7
        ) % 6 == 0


def random_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A scene drawn evenly over subjects, colours and motions; surfing always happens at sea."""
    while True:
        motion = rng.choice(MOTIONS)
        background = "sea" if motion == "surfing" else rng.choice((*PLAIN, *("sea", "night", "grass") * 2))
        scene = Scene(rng.choice(SUBJECTS), rng.choice(list(COLOURS)), motion, background)
        if scene.held_out == held_out:
            return scene


def _rgb(colour: tuple[int, int, int], device) -> Tensor:
    return torch.tensor(colour, device=device).view(3, 1, 1).float() / 255


class Renderer:
    """Draws scenes. `seed` fixes all that a scene leaves open: sizes, speeds, phases, places."""

    def __init__(self, device: str | torch.device = "cpu", seed: int = 0):
        self.device = torch.device(device)
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.atlas = shapes.atlas(self.device)
        self.palette = torch.tensor(list(COLOURS.values()), device=device).float() / 255
        self.y = (torch.arange(HEIGHT, device=device) + 0.5).view(HEIGHT, 1)
        self.x = (torch.arange(WIDTH, device=device) + 0.5).view(1, WIDTH)
        self.still = {name: self._still(name) for name in (*PLAIN, "night", "grass")}

    def _uniform(self, n: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, device=self.device, generator=self.generator)

    def _gradient(self, top, bottom, start=0.0, end=float(HEIGHT)) -> Tensor:
        weight = ((self.y - start) / (end - start)).clamp(0, 1)
        return torch.lerp(_rgb(top, self.device), _rgb(bottom, self.device), weight.expand(3, HEIGHT, WIDTH))

    def _disc(self, x: float, y: float, radius: float) -> Tensor:
        return (radius + 0.5 - torch.hypot(self.x - x, self.y - y)).clamp(0, 1)

    def _still(self, name: str) -> Tensor:
        """A background that does not move: [3, H, W] in [0, 1]."""
        if name == "night":
            image = self._gradient((14, 16, 48), (38, 36, 84))
            stars = random.Random(7)
            light = self._disc(30, 28, 15) * (1 - self._disc(38, 24, 14))
            for _ in range(22):
                spot = self._disc(
                    stars.uniform(4, WIDTH - 4), stars.uniform(5, HEIGHT - 5), stars.choice((1.4, 1.8, 2.3))
                )
                light = torch.maximum(light, spot)
            return torch.lerp(image, _rgb((240, 238, 205), self.device), light)
        if name == "grass":
            edge = 118 + 3 * torch.sin(self.x / 30) + 2.5 * ((self.x / 9) % 1 - 0.5).abs() * 2
            sky = self._gradient((165, 212, 242), (222, 240, 250))
            ground = self._gradient((140, 200, 90), (95, 160, 62), 115, HEIGHT)
            return torch.lerp(sky, ground, (self.y - edge + 0.5).clamp(0, 1))
        return _rgb(PLAIN[name], self.device).expand(3, HEIGHT, WIDTH)

    def _wave_height(self, x: Tensor, time: Tensor, phase: Tensor) -> Tensor:
        return SEA_LEVEL + WAVE * torch.sin(x / 20.4 + phase - 2 * math.pi * time)

    def _sea(self, time: Tensor, phase: Tensor) -> Tensor:
        """Moving waves: time [n, T], phase [n, 1] -> [n, T, 3, H, W]."""
        time, phase = time[:, :, None, None], phase[:, :, None, None]
        crest = self._wave_height(self.x, time, phase)  # [n, T, 1, W]
        sky = self._gradient((175, 220, 245), (225, 242, 250))
        sky = torch.lerp(sky, _rgb((255, 236, 150), self.device), self._disc(214, 28, 17))
        water = self._gradient((60, 150, 190), (30, 95, 140), 95, HEIGHT)[None, None]
        for k, depth in ((1, 22.0), (2, 42.0)):
            line = SEA_LEVEL + depth + 5 * torch.sin(self.x / 16.3 + k * phase + 1.7 * k - 2 * math.pi * time)
            glint = (2.2 - (self.y - line).abs()).clamp(0, 1) * 0.8
            water = torch.lerp(water, _rgb((110, 185, 212), self.device), glint[:, :, None])
        image = torch.lerp(sky, water, (self.y - crest + 0.5).clamp(0, 1)[:, :, None])
        foam = (2.4 - (self.y - crest - 1).abs()).clamp(0, 1)[:, :, None]
        return torch.lerp(image, _rgb((240, 250, 252), self.device), foam)

    def _paths(self, scenes: list[Scene], time: Tensor, phase: Tensor):
        """Centre x, y, half size and tilt of every subject over time, each [B, T]."""
        n = len(scenes)
        still = torch.zeros_like(time)
        size = self._uniform(n, 25, 34)
        free_x, free_y = WIDTH / 2 + self._uniform(n, -45, 45), HEIGHT / 2 + self._uniform(n, -24, 24)
        run, climb = self._uniform(n, 90, 130), self._uniform(n, 52, 72)
        start_x = 40 + self._uniform(n, 0, 1) * (WIDTH - 80 - run)
        start_y = 38 + self._uniform(n, 0, 1) * (HEIGHT - 76 - climb)
        angle = phase + 2 * math.pi * time
        radius, hop = self._uniform(n, 34, 42), self._uniform(n, 52, 68)
        small, large = self._uniform(n, 13, 16), self._uniform(n, 42, 50)
        surf_x = self._uniform(n, 62, 104) + 90 * time
        slope = WAVE / 20.4 * torch.cos(surf_x / 20.4 + phase - 2 * math.pi * time)
        surf_size = 22 + 0.5 * (size - 25)
        # per motion: x, y, half size, tilt
        paths = {
            "left": (WIDTH - start_x - run * time, free_y, size, still),
            "right": (start_x + run * time, free_y, size, still),
            "up": (free_x, HEIGHT - start_y - climb * time, size, still),
            "down": (free_x, start_y + climb * time, size, still),
            "bouncing": (free_x, 122 - hop * torch.sin(phase + 1.5 * math.pi * time).abs(), size, still),
            "circling": (free_x + radius * torch.cos(angle), HEIGHT / 2 + radius * torch.sin(angle), size, still),
            "growing": (free_x, free_y, small + (large - small) * time, still),
            "shrinking": (free_x, free_y, large - (large - small) * time, still),
            "surfing": (
                surf_x,
                self._wave_height(surf_x, time, phase) - 0.8 * surf_size - 6,
                surf_size,
                torch.atan(slope) * 0.8,
            ),
        }
        which = torch.tensor([MOTIONS.index(s.motion) for s in scenes], device=self.device)
        every = [torch.stack([(paths[m][k] + still) for m in MOTIONS]) for k in range(4)]  # 4 x [9, B, T]
        return [e[which, torch.arange(n, device=self.device)] for e in every]

    @torch.no_grad()
    def render(self, scenes: list[Scene], times: tuple[float, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Draw clips, or only the frames at `times` in [0, 1].

        Returns video [B, 3, T, H, W] in [-1, 1] and the subject's mask [B, 1, T, H, W] in {0, 1}.
        """
        n, device = len(scenes), self.device
        moments = torch.linspace(0, 1, FRAMES, device=device) if times is None else torch.tensor(times, device=device)
        frames = len(moments)
        time = moments.expand(n, frames)
        phase = self._uniform(n, 0, 2 * math.pi)
        x, y, size, tilt = (p[:, :, None, None] for p in self._paths(scenes, time, phase))

        image = torch.empty(n, frames, 3, HEIGHT, WIDTH, device=device)
        for i, scene in enumerate(scenes):
            if scene.background != "sea":
                image[i] = self.still[scene.background]
        at_sea = [i for i, s in enumerate(scenes) if s.background == "sea"]
        if at_sea:
            image[at_sea] = self._sea(time[at_sea], phase[at_sea])

        dx, dy = self.x - x, self.y - y  # [B, T, H, W]
        u, v = tilt.cos() * dx + tilt.sin() * dy, tilt.cos() * dy - tilt.sin() * dx
        surfing = [i for i, s in enumerate(scenes) if s.motion == "surfing"]
        if surfing:
            along = (u[surfing] / 38).clamp(-1, 1)
            distance = torch.hypot(u[surfing] - 38 * along, v[surfing] - size[surfing] * 0.9 + 5 * along**2) - 4.6
            board = torch.lerp(image[surfing], _rgb(OUTLINE, device), (1.9 - distance).clamp(0, 1)[:, :, None])
            image[surfing] = torch.lerp(board, _rgb(BOARD, device), (0.3 - distance).clamp(0, 1)[:, :, None])

        side = torch.tensor(
            [-1.0 if s.motion == "left" else 1.0 if s.motion in ("right", "surfing") else 0.0 for s in scenes],
            device=device,
        ).view(n, 1)
        coin = torch.where(self._uniform(n, 0, 1) < 0.5, -1.0, 1.0)
        facing = torch.where(side == 0, coin, side)[:, :, None, None]
        grid = torch.stack([u * facing / size, v / size], -1) / shapes.EXTENT
        which = torch.tensor([SUBJECTS.index(s.subject) for s in scenes], device=device)
        layers = F.grid_sample(
            self.atlas[which], grid.view(n, frames * HEIGHT, WIDTH, 2), padding_mode="border", align_corners=False
        ).view(n, 4, frames, HEIGHT, WIDTH)
        layers = layers * size[:, None]  # signed distances in pixels
        layers = torch.where((grid.abs().amax(-1) > 1)[:, None], torch.full_like(layers, 9.0), layers)
        body, accent, eye, pupil = (layers[:, k, :, None] for k in range(4))  # each [B, T, 1, H, W]
        colour = self.palette[[list(COLOURS).index(s.colour) for s in scenes]].view(n, 1, 3, 1, 1)
        inside = (0.3 - body).clamp(0, 1)
        image = torch.lerp(image, _rgb(OUTLINE, device), (2.3 - body).clamp(0, 1))
        image = torch.lerp(image, colour, inside)
        image = torch.lerp(image, colour * 0.45 + 0.55, (0.5 - accent).clamp(0, 1) * inside)
        image = torch.lerp(image, torch.ones_like(colour), (0.5 - eye).clamp(0, 1))
        image = torch.lerp(image, _rgb(OUTLINE, device), (0.5 - pupil).clamp(0, 1))
        return image.transpose(1, 2) * 2 - 1, (body < 4).float().transpose(1, 2)
