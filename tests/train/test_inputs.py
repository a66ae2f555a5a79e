"""What a run reads beside its settings is the same whenever it goes on."""

from __future__ import annotations

import pytest

from fpsgen.errors import BAD_INPUT, FpsgenError
from fpsgen.models.catalog.choice import choose
from fpsgen.train.inputs import INPUTS, check_inputs


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
