"""Contact sheets: clips as rows of evenly spaced frames in one picture."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor


def contact_sheet(
    clips: list[Tensor], path: str | Path, titles: list[str] | None = None, columns: int = 6, scale: float = 0.7
) -> None:
    """Write clips [3, T, H, W] in [-1, 1] as a PNG, a row each, with an optional title above each row."""
    rows = []
    for clip in clips:
        picks = torch.linspace(0, clip.shape[1] - 1, columns).round().long()
        frames = [F.pad(clip[:, k].float().cpu(), (2, 2, 2, 2), value=1.0) for k in picks]
        rows.append(((torch.cat(frames, -1).clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    height, width = rows[0].shape[:2]
    height, width = round(height * scale), round(width * scale)
    band = 16 if titles else 0
    sheet = Image.new("RGB", (width, len(rows) * (height + band)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, row in enumerate(rows):
        top = k * (height + band)
        if titles:
            draw.text((4, top + 2), titles[k], fill="black")
        sheet.paste(Image.fromarray(row).resize((width, height), Image.Resampling.LANCZOS), (0, top + band))
    sheet.quantize(256).save(path, optimize=True)
