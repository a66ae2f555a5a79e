"""tools.decoder with a small VAE on a CPU."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from tools import decoder


def test_rows_say_how_far_from_fp32_each_decoder_is(monkeypatch):
    monkeypatch.setattr(decoder, "SIZES", {"480p": (48, 32)})
    monkeypatch.setattr(decoder, "FRAMES", 5)
    torch.manual_seed(0)
    rows = decoder.run(torch.device("cpu"), 2, AutoencoderKLWan(base_dim=8))
    assert [(row["how"], row["psnr_cell"] == "") for row in rows] == [
        ("diffusers, fp32", True),
        ("diffusers, bf16", False),
        ("ours, bf16", False),
    ]
    assert all(len(row["seconds"]) == 2 and float(row["psnr_cell"] or 99) > 35 for row in rows)


def test_psnr_is_of_values_from_minus_one_to_one():
    exact = torch.zeros(1, 3, 2, 4, 4)
    assert decoder.psnr(exact + 0.02, exact) == pytest.approx(40)
    assert decoder.psnr(exact + 3, exact) == pytest.approx(10 * torch.log10(torch.tensor(4.0)).item())
