"""Attention whose output is in FP8 for the linear layer after it: its error is that of rows quantized after attention,
also where channels, heads and tokens are of unlike size; and what takes another way.
"""

from dataclasses import replace

import accelerated as case
import pytest
import torch
import torch.nn.functional as F

from fpsgen import apply
from fpsgen.attention import AttentionPlan, attend
from fpsgen.attention.schedule import Profile, Schedule
from fpsgen.fused import FP8Channels, fold_channels, fp8_linear, quantize_rows, quantize_weight
from fpsgen.models.patch import linear
from fpsgen.models.patch.block import FusedPatch
from fpsgen.models.patch.linear import LinearPatch
from fpsgen.models.patch.run_record import ATTENTION

SPARSE = Schedule("sparse", (Profile("all", "fps", (3, 2, 4), density=0.5),), ((0.0, 1.0, "all"),))
PATCHES = [LinearPatch(), FusedPatch(anywhere=True)]
GRID, HEADS, DIM = (6, 8, 9), 6, 64


def error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def outlier_channel(v, weight):
    v[..., 1, 5] *= 100


def outlier_head(v, weight):
    v[..., 2, :] *= 1000


def outlier_head_that_counts_as_much(v, weight):
    """The weights of the linear layer make up for it."""
    v[..., 2, :] *= 1000
    weight.unflatten(1, (HEADS, DIM))[:, 2] /= 1000


def outlier_token(v, weight):
    v[:, 7] *= 100


def outlier_sample(v, weight):
    v[1] *= 100


OUTLIERS = [
    lambda v, weight: None,
    outlier_channel,
    outlier_head,
    outlier_head_that_counts_as_much,
    outlier_token,
    outlier_sample,
]


@pytest.mark.parametrize("outlier", OUTLIERS, ids=lambda f: f.__name__.strip("<>"))
def test_the_error_is_that_of_rows_quantized_after_attention(outlier):
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 432, HEADS, DIM, generator=random) for _ in range(3))
    weight = torch.randn(96, HEADS * DIM, generator=random)
    outlier(v, weight)
    plan = AttentionPlan(GRID, (3, 4, 9))
    out, output = attend(q * 0.3, k, v, plan), attend(q * 0.3, k, v, plan, fp8_out=True)
    wanted = F.linear(out.flatten(2).double(), weight.double())
    rows = fp8_linear(quantize_rows(out.flatten(2)), quantize_weight(weight), None, torch.float32)
    channels = FP8Channels(output.values.flatten(2), output.scale.flatten())
    folded = fp8_linear(*fold_channels(channels, weight), None, torch.float32)
    for sample in range(2):
        assert error(folded[sample], wanted[sample]) < 1.25 * error(rows[sample], wanted[sample]) < 0.06
    channels = channels._replace(scale=channels.scale.roll(1))
    assert error(fp8_linear(*fold_channels(channels, weight), None, torch.float32), wanted) > 0.1


@pytest.fixture
def transformer():
    return case.transformer()


@pytest.fixture
def taken(monkeypatch):
    """Names of the layers that took FP8Channels."""
    names, real = [], linear.FP8Linear.forward

    def forward(self, x):
        if isinstance(x, FP8Channels):
            names.append(self.place.part)
        return real(self, x)

    monkeypatch.setattr(linear.FP8Linear, "forward", forward)
    return names


def padded():
    given = case.inputs()
    given["encoder_hidden_states"][:, 4:] = 0
    return given


def test_blocks_go_this_way_and_err_no_more(transformer, taken):
    given = padded()
    with apply(transformer, SPARSE, exact=True):
        wanted = case.forward(transformer, given)
    with apply(transformer, SPARSE, exact=True, patches=PATCHES[:1]):
        rows = case.forward(transformer, given)
    assert not taken
    with apply(transformer, SPARSE, exact=True, strict=True, patches=PATCHES):
        ours = case.forward(transformer, given)
        assert taken == ["attn1.to_out.0", "attn2.to_out.0"] * case.LAYERS
        again = case.forward(transformer, given)
    assert torch.equal(again, ours)
    assert 1e-3 < error(ours, wanted) < 1.1 * error(rows, wanted) < 0.06


@pytest.mark.parametrize("fused_projections", [False, True])
def test_compiled_blocks_go_this_way(transformer, taken, fused_projections):
    torch._dynamo.reset()
    if fused_projections:
        transformer.fuse_qkv_projections()
    given = case.inputs()  # compiled code takes all of a text
    with apply(transformer, SPARSE, exact=True, patches=PATCHES):
        eager = case.forward(transformer, given)
        transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        taken.clear()
        assert error(case.forward(transformer, given), eager) < 1e-3 and set(taken) == {"attn1.to_out.0"}


def test_what_takes_another_way(transformer, taken):
    """16-bit attention, a layer that stays dense, a text without padding, a linear layer with a hook."""
    given = case.inputs()
    with apply(transformer, case.DENSE, exact=True, patches=PATCHES):
        case.forward(transformer, given)
    assert not taken
    with apply(transformer, replace(SPARSE, dense_layers=(1,)), exact=True, patches=PATCHES) as handle:
        case.forward(transformer, given)
        kernels = {
            group["kernel"]: group["layers"]
            for group in handle.report()["steps"][0]["layers"]
            if group["component"] == ATTENTION
        }
    assert taken == ["attn1.to_out.0"] * 2 and kernels["sdpa"] == [1]
    taken.clear()
    hook = transformer.blocks[0].attn1.to_out[0].register_forward_hook(lambda *_: None)
    with apply(transformer, SPARSE, exact=True, patches=PATCHES):
        case.forward(transformer, given)
    hook.remove()
    assert taken == ["attn1.to_out.0"] * 2


def test_a_changed_weight_is_seen(transformer):
    given = padded()
    with apply(transformer, SPARSE, exact=True, patches=PATCHES):
        before = case.forward(transformer, given)
        transformer.blocks[1].attn1.to_out[0].weight.data.mul_(-1)  # which no version counts
        after = case.forward(transformer, given)
        transformer.blocks[1].attn1.to_out[0].weight.data.mul_(-1)
        assert error(after, before) > 0.05 and torch.equal(case.forward(transformer, given), before)
