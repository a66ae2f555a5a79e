"""Patches of other components beside attention: reported, counted, held to strict, and undone like it."""

from __future__ import annotations

import pytest
import torch
import wan_cases as case
from tiny import tiny_transformer

from fpsgen import apply
from fpsgen.errors import NUMERIC, USAGE, FpsgenError
from fpsgen.models.patch.linear import LinearPatch
from fpsgen.models.patch.run_record import LayerRun

PARTS = ("ffn.net.0.proj", "ffn.net.2")


class DoublePatch:
    """Doubles the output of the linear layers of a block's MLP. left_out: blocks where it does not."""

    component = "linear"

    def __init__(self, left_out=(), log=None, calls=True):
        self.left_out, self.log, self.calls = left_out, [] if log is None else log, calls

    def install(self, transformer, run):
        return InstalledDouble(self, transformer, run)


class InstalledDouble:
    def __init__(self, patch, transformer, run):
        self.log, self.removers = patch.log, []
        self.log.append("installed")
        runs = []
        for layer, block in enumerate(transformer.blocks):
            for part in PARTS:
                skip = layer in patch.left_out
                runs.append(LayerRun(layer, "bf16" if skip else "double", "schedule" if skip else None, part=part))

                def hook(module, args, output, layer=layer, part=part, skip=skip):
                    if patch.calls and not torch.compiler.is_compiling():
                        run.count("linear", layer, part)
                    return output if skip else 2 * output

                self.removers.append(block.get_submodule(part).register_forward_hook(hook))
        self.runs = tuple(runs)

    def undo(self):
        self.log.append("undone")
        for remover in self.removers:
            remover.remove()

    def layer_runs(self, forward):
        return self.runs


def test_a_component_is_reported_like_attention(transformer):
    stock = case.forward(transformer)
    with apply(transformer, case.one(case.TILED), patches=[DoublePatch(left_out=(1,))], strict=True) as handle:
        assert case.difference(case.forward(transformer), stock) > 1e-3
        report = handle.report()
        text = str(handle)
    assert torch.equal(case.forward(transformer), stock)
    assert report["components"] == {"attention": {"sdpa": 3}, "linear": {"double": 4, "bf16": 2}}
    assert report["kernels"] == {"sdpa": 3}
    (step,) = report["steps"]
    assert step["calls"] == 3 and step["density"] == 1.0
    groups = [group for group in step["layers"] if group["component"] == "linear"]
    assert [(g["layers"], g["kernel"], g["reason"], g["calls"]) for g in groups] == [
        ([0, 2], "double", None, 4),
        ([1], "bf16", "schedule", 2),
    ]
    assert all(group["parts"] == sorted(PARTS) and group["density"] is None for group in groups)
    assert "linear: 4 calls of double, 2 calls of bf16" in text


def test_patches_come_off_in_reverse_order(transformer):
    log: list[str] = []
    patch = DoublePatch(log=log)
    handle = apply(transformer, case.one(case.TILED), patches=[patch])
    right = transformer.blocks[0].attn1.processor
    inner = handle._stacks[0].installed["linear"]
    undo = inner.undo
    inner.undo = lambda: (log.append(transformer.blocks[0].attn1.processor is right), undo())
    handle.remove()
    assert log == ["installed", True, "undone"]


def test_a_patch_that_cannot_be_installed_leaves_nothing(transformer):
    class Refuses:
        component = "norm"

        def install(self, transformer, run):
            raise FpsgenError("cannot", "do not", USAGE)

    log: list[str] = []
    before = {name: dict(vars(module)) for name, module in transformer.named_modules()}
    with pytest.raises(FpsgenError, match="cannot"):
        apply(transformer, case.one(case.TILED), patches=[DoublePatch(log=log), Refuses()])
    assert log == ["installed", "undone"]
    assert {name: dict(vars(module)) for name, module in transformer.named_modules()} == before
    with pytest.raises(FpsgenError, match="linear"):
        apply(transformer, case.one(case.TILED), patches=[DoublePatch(), DoublePatch()])
    apply(transformer, case.one(case.TILED)).remove()


def test_the_second_transformer_fails_and_the_first_is_clean(tiny_dir):
    from fpsgen.models.wan.load import load

    pipe = load(tiny_dir)
    pipe.register_modules(transformer_2=tiny_transformer())

    class OnlyOne(DoublePatch):
        def install(self, transformer, run):
            if transformer is pipe.transformer_2:
                raise FpsgenError("second", "no", USAGE)
            return super().install(transformer, run)

    with pytest.raises(FpsgenError, match="second"):
        apply(pipe, case.one(case.TILED), patches=[OnlyOne()])
    apply(pipe, case.one(case.TILED)).remove()


def test_strict_holds_for_every_component(transformer):
    """Planted: a patch whose layers do not run."""
    with apply(transformer, case.one(case.TILED), patches=[DoublePatch(calls=False)]) as handle:
        case.forward(transformer)
        (row,) = handle.report()["fallbacks"]
        assert (row["component"], row["reason"], row["layers"]) == ("linear", "not_called", [0, 1, 2])
    with (
        apply(transformer, case.one(case.TILED), patches=[DoublePatch(calls=False)], strict=True),
        pytest.raises(FpsgenError, match="linear of layers") as caught,
    ):
        case.forward(transformer)
    assert caught.value.code == NUMERIC


def test_a_block_that_is_left_out_is_no_step_cache(transformer):
    with apply(transformer, case.one(case.TILED)) as handle:
        transformer.blocks[1].forward = lambda hidden_states, *_: hidden_states
        case.forward(transformer)
        report = handle.report()
    (row,) = report["fallbacks"]
    assert (row["component"], row["reason"], row["layers"]) == ("attention", "not_called", [1])
    assert report["skipped_by_cache"] == 0


def test_a_strict_apply_that_fails_leaves_no_fp8_layer():
    """A layer that does not fit is a deviation, found when the others have been changed already."""
    transformer = tiny_transformer(head_dim=16)
    for block in transformer.blocks:
        block.attn1.to_q = torch.nn.Sequential(block.attn1.to_q)
    before = {name: type(module) for name, module in transformer.named_modules()}
    with pytest.raises(FpsgenError, match=r"attn1.to_q is a Sequential") as caught:
        apply(transformer, case.one(case.TILED), strict=True, patches=[LinearPatch()])
    assert caught.value.code == NUMERIC
    assert {name: type(module) for name, module in transformer.named_modules()} == before


def test_a_deviation_at_install_is_kept_over_loops(tiny_dir):
    from fpsgen.models.wan.load import load

    pipe = load(tiny_dir)
    handle = apply(pipe, case.one(case.SPARSE, dense_layers=(7,)))
    for _ in range(2):
        case.video(pipe, steps=2)
        assert [row["reason"] for row in handle.report()["fallbacks"]] == ["no_such_layer"]
