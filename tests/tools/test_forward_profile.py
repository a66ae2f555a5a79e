"""tools.forward_profile: kernels sorted into parts, and a small model whose forward's kernels are made up."""

from dataclasses import replace

import pytest
import torch

from fpsgen.models.catalog.registry import find_spec
from tools import forward_profile, power
from tools.forward_profile import PARTS, Kernel, busy, by_part

PRODUCT = "nvjet_sm90_qqtst_192x208_128x4_1x2_h_bz_coopB_bias_TNT"


def test_a_kernel_belongs_to_one_part_and_what_runs_once_is_spread_over_all_layers():
    kernels = [Kernel(PRODUCT, 0.0, 3000.0)] * 16 + [Kernel("nvjet_sm90_tst_256x144_bias_TNT", 0.0, 400.0)]
    kernels += [Kernel("norm_kernel", 0.0, 1000.0)] * (3 * 8 + 2) + [Kernel("void direct_copy_kernel", 0.0, 8.0)] * 8
    parts = by_part(kernels, 8, 40)
    assert list(parts) == list(PARTS) and parts["FP8 matrix products"] == pytest.approx(6.0)
    assert parts["LayerNorm, modulation, residual, cast to FP8"] == pytest.approx(3 + 2 / 40)
    assert parts["all else (embeddings, head: once a forward)"] == pytest.approx(0.4 / 40 + 0.008)
    assert sum(parts.values()) == pytest.approx(9.05 + 0.01 + 0.008)
    names = ("attend_fp8_sm90", "quantize_kernel", "norm_rope_quantize", "cross_attention_kernel", "quantize_qkv")
    found = [next(part for part, ms in by_part([Kernel(name, 0, 8)], 8, 40).items() if ms) for name in names]
    assert [part.split()[0] for part in found] == ["attention", "casts", "norm", "cross-attention", "cast"]


def test_busy_counts_kernels_side_by_side_once():
    assert busy([Kernel("b", 5, 20), Kernel("a", 0, 10), Kernel("c", 30, 40)]) == pytest.approx(30 / 40)


def test_rows_have_a_column_for_each_profile(monkeypatch):
    small = {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 64, "num_layers": 40, "text_dim": 32}
    spec = find_spec("wan2.1-14b")
    monkeypatch.setattr(forward_profile, "find_spec", lambda name: replace(spec, transformer=spec.transformer | small))
    monkeypatch.setattr(forward_profile, "SIZES", {"480p": (96, 64)})
    monkeypatch.setattr(forward_profile, "FRAMES", 5)
    monkeypatch.setattr(power, "SMI", ["no-such-command"])
    seen = []

    def traced(call):
        call()
        seen.append(1)
        return [Kernel("attend_fp8_sm90", 0, 8000.0 * len(seen)), Kernel("other", 10_000, 32_000)]

    monkeypatch.setattr(forward_profile, "traced", traced)
    table = forward_profile.run("wan2.1-14b", "480p", torch.device("cpu"), 0.01)
    assert list(table["columns"]) == ["what", "early", "middle", "late"]
    rows = {row["what"]: [row[name] for name in ("early", "middle", "late")] for row in table["rows"]}
    assert rows["attention"] == ["0.20", "0.40", "0.60"] and rows["cast of V"] == ["0.00"] * 3
    assert rows["a kernel runs, % of the time"] == ["93.8%", "100.0%", "100.0%"]
