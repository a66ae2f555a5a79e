"""Where fused passes may stand in for what diffusers wrote."""

from __future__ import annotations

import torch


def not_fusable(device: torch.device) -> str | None:
    """Why a forward runs as diffusers wrote it, or None."""
    if torch.is_grad_enabled():
        return "gradient"
    return "autocast" if torch.is_autocast_enabled(device.type) else None
