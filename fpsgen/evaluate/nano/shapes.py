"""The eight subjects of the nano world as signed distance fields.

Each subject has four layers: body, a lighter accent, eye white, pupil; a layer that a subject lacks is far outside.
Distances are in units of the subject's half size, negative inside.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

EXTENT = 1.3  # the atlas covers [-EXTENT, EXTENT] in both axes


def circle(p: Tensor, x: float, y: float, radius: float) -> Tensor:
    return torch.hypot(p[..., 0] - x, p[..., 1] - y) - radius


def box(p: Tensor, half: float) -> Tensor:
    return p.abs().amax(-1) - half


def ellipse(p: Tensor, x: float, y: float, a: float, b: float) -> Tensor:
    """First-order distance: value of the implicit function over the length of its gradient."""
    q = p - torch.tensor([x, y], device=p.device)
    radii = torch.tensor([a, b], device=p.device)
    value = (q / radii).norm(dim=-1)
    return value * (value - 1) / (q / radii**2).norm(dim=-1).clamp_min(1e-6)


def capsule(p: Tensor, start: tuple[float, float], end: tuple[float, float], radius: float) -> Tensor:
    a, b = (torch.tensor(v, device=p.device) for v in (start, end))
    along = (((p - a) * (b - a)).sum(-1) / (b - a).square().sum()).clamp(0, 1)
    return (p - a - along[..., None] * (b - a)).norm(dim=-1) - radius


def polygon(p: Tensor, *corners: tuple[float, float]) -> Tensor:
    """Distance to the nearest edge, its sign by the even-odd rule."""
    v = torch.tensor(corners, device=p.device)
    w = v.roll(-1, 0)
    distance = torch.full(p.shape[:-1], float("inf"), device=p.device)
    inside = torch.zeros(p.shape[:-1], dtype=torch.bool, device=p.device)
    for a, b in zip(v, w, strict=True):
        edge, to = b - a, p - a
        along = ((to * edge).sum(-1) / edge.square().sum()).clamp(0, 1)
        distance = torch.minimum(distance, (to - along[..., None] * edge).norm(dim=-1))
        crosses = (a[1] > p[..., 1]) != (b[1] > p[..., 1])
        inside ^= crosses & (p[..., 0] < a[0] + (p[..., 1] - a[1]) * edge[0] / torch.where(edge[1] == 0, 1.0, edge[1]))
    return torch.where(inside, -distance, distance)


def union(*parts: Tensor) -> Tensor:
    return reduce(torch.minimum, parts)


def atlas(device: torch.device | str, resolution: int = 256) -> Tensor:
    """All subjects: [8, 4, resolution, resolution], clamped to [-2, 2]; row order is that of `world.SUBJECTS`."""
    axis = ((torch.arange(resolution, device=device) + 0.5) / resolution * 2 - 1) * EXTENT
    p = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    none = torch.full(p.shape[:2], 9.0, device=device)
    spikes = [(0.98 if k % 2 == 0 else 0.46, math.pi * k / 5) for k in range(10)]
    star = polygon(p, *((r * math.sin(t), -r * math.cos(t)) for r, t in spikes))
    cat = union(
        ellipse(p, -0.12, 0.22, 0.6, 0.34),
        circle(p, 0.5, -0.22, 0.38),
        polygon(p, (0.18, -0.38), (0.22, -0.92), (0.52, -0.52)),
        polygon(p, (0.48, -0.52), (0.8, -0.92), (0.84, -0.38)),
        *(capsule(p, (x, 0.3), (x, 0.78), 0.12) for x in (-0.55, -0.22, 0.12, 0.4)),
        capsule(p, (-0.62, 0.1), (-0.95, -0.25), 0.1),
        capsule(p, (-0.95, -0.25), (-0.86, -0.66), 0.1),
    )
    fish = union(
        ellipse(p, 0.16, 0.0, 0.74, 0.48),
        polygon(p, (-0.35, 0.0), (-0.98, -0.5), (-0.82, 0.0), (-0.98, 0.5)),
        polygon(p, (-0.2, -0.35), (0.0, -0.76), (0.4, -0.38)),
    )
    bird = union(
        ellipse(p, -0.05, 0.2, 0.56, 0.36),
        circle(p, 0.45, -0.15, 0.3),
        polygon(p, (0.64, -0.32), (1.04, -0.1), (0.64, 0.06)),
        polygon(p, (-0.38, 0.1), (-0.3, -0.94), (0.26, 0.05)),
        polygon(p, (-0.4, 0.1), (-1.0, -0.08), (-0.94, 0.42), (-0.4, 0.37)),
    )
    boat = union(
        polygon(p, (-0.95, 0.3), (0.95, 0.3), (0.62, 0.8), (-0.62, 0.8)),
        capsule(p, (0.0, 0.3), (0.0, -0.9), 0.06),
        polygon(p, (0.06, -0.9), (0.06, 0.18), (0.82, 0.18)),
        polygon(p, (-0.06, -0.64), (-0.06, 0.18), (-0.62, 0.18)),
    )
    subjects = [
        (circle(p, 0, 0, 0.82), circle(p, -0.3, -0.32, 0.22), none, none),
        (box(p, 0.74), none, none, none),
        (polygon(p, (0.0, -0.9), (0.95, 0.75), (-0.95, 0.75)), none, none, none),
        (star, none, none, none),
        (cat, ellipse(p, 0.68, -0.1, 0.15, 0.1), circle(p, 0.52, -0.3, 0.14), circle(p, 0.56, -0.3, 0.075)),
        (
            fish,
            polygon(p, (0.05, 0.05), (-0.25, 0.3), (-0.2, -0.05)),
            circle(p, 0.52, -0.12, 0.15),
            circle(p, 0.56, -0.12, 0.08),
        ),
        (
            bird,
            polygon(p, (0.7, -0.26), (1.04, -0.1), (0.7, 0.0)),
            circle(p, 0.5, -0.22, 0.13),
            circle(p, 0.54, -0.22, 0.07),
        ),
        (boat, polygon(p, (0.14, -0.6), (0.14, 0.1), (0.64, 0.1)), none, none),
    ]
    return torch.stack([torch.stack(layers) for layers in subjects]).clamp(-2, 2)
