"""tools.products in small sizes on a CPU: all kinds of scales multiply the same numbers."""

import torch

from tools import power, products


def test_kinds_of_scales_take_turns_at_the_same_product(monkeypatch):
    monkeypatch.setattr(power, "SMI", ["no-such-command"])
    monkeypatch.setattr(products, "SHAPES", {"up": (48, 32), "down": (32, 48)})
    rows = products.run(24, torch.device("cpu"), 0.01, 2)
    assert [(row["what"], row["kind"]) for row in rows] == [
        (what, kind) for what in ("up", "down") for kind in (products.ROWS, products.ONE, products.LATER)
    ]
    assert all(len(row["ms"]) == 2 and float(row["ms_cell"]) > 0 and row["mhz"] == "" for row in rows)
    calls = products.products(24, 48, 32, torch.device("cpu"))
    wanted, one, later = (calls[kind]() for kind in (products.ROWS, products.ONE, products.LATER))
    assert (one - wanted).norm() < 1e-2 * wanted.norm()
    assert (later.values.float() * later.scale + later.bias - wanted).norm() < 1e-2 * wanted.norm()
