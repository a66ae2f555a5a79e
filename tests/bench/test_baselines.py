"""Attention of others beside ours: called as it ships, and no end of the bench where it fails."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch

from fpsgen.bench import kernel
from fpsgen.bench.baselines import sageattention
from fpsgen.bench.shapes import Shape


def test_a_baseline_that_fails_is_a_row(monkeypatch):
    def broken(q, k, v):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(kernel, "baselines", lambda device: ({"theirs": broken}, {"other": "not installed"}))
    rows = list(kernel.run([Shape("small", (4, 4, 8), 1)], ["bf16"], [1.0], 0.01, torch.device("cpu")))
    assert [(row["method"], row.get("missing")) for row in rows] == [
        ("theirs", "failed: RuntimeError"),
        ("other", "not installed"),
        ("bf16", None),
    ]
    assert rows[-1]["median_ms"] > 0


def test_sageattention_leaves_the_keys_as_they_are(monkeypatch):
    """Its package takes their mean off in place; the methods after it get the same keys."""

    def sageattn(q, k, v, tensor_layout):
        assert tensor_layout == "NHD"
        k -= k.mean(1, keepdim=True)
        return v

    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sageattn))
    q, k, v = torch.randn(3, 1, 8, 2, 4)
    kept, function = k.clone(), sageattention()
    assert function is not None and torch.equal(function(q, k, v), v) and torch.equal(k, kept)
    monkeypatch.setitem(sys.modules, "sageattention", None)
    assert sageattention() is None
