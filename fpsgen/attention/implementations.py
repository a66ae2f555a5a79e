"""What may be asked to compute attention, see AttentionPlan. Imports no torch."""

from __future__ import annotations

IMPLEMENTATIONS = ("auto", "reference", "triton")
