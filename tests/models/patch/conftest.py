"""The transformer that patches are put on."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_transformer


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return tiny_transformer(layers=3)
