"""What a run reads beside its settings is the same whenever it goes on."""

from __future__ import annotations

import pytest
import torch
from refusal import refuses

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.models.catalog.choice import choose
from fpsgen.train.events import Silent
from fpsgen.train.inputs import INPUTS, check_inputs
from fpsgen.train.run import train
from fpsgen.train.teacher import prepare_pairs


def test_data_may_be_prepared_after_the_pairs_but_not_change(tiny_dir, tmp_path):
    choice, data = choose(str(tiny_dir)), tmp_path / "data"
    check_inputs(tmp_path, choice, str(data))  # the pairs
    data.mkdir()
    (data / "data.json").write_text("{}")
    for _ in range(2):
        check_inputs(tmp_path, choice, str(data))
    (data / "data.json").write_text('{"samples": 1}')
    before = (tmp_path / INPUTS).read_bytes()
    with pytest.raises(FpsgenError, match="data changed") as caught:
        check_inputs(tmp_path, choice, str(data))
    assert caught.value.code == BAD_INPUT and (tmp_path / INPUTS).read_bytes() == before


@pytest.mark.parametrize("change", [{"width": 60}, {"height": 20}, {"frames": 10}])
def test_a_size_that_the_model_cannot_make_is_named(make_config, tmp_path, change):
    """The same where only pairs are made; nothing is left half done."""
    config = make_config(**change)
    (size,) = change.values()
    given = (config, tmp_path / "run", torch.device("cpu"))
    with refuses(BAD_INPUT, str(size)):
        train(*given, Silent(), Silent())
    with refuses(BAD_INPUT, str(size)):
        prepare_pairs(*given, Silent())
    assert not (tmp_path / "run").exists()
