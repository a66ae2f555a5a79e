"""SpargeAttn's choice of key blocks against its definition, written out block by block in fp64."""

from itertools import pairwise

import pytest
import torch

from fpsgen.attention import METHODS, AttentionPlan, Profile, attend, kept_density, select_lists
from fpsgen.attention.methods import sparge
from fpsgen.attention.quantize import fake_quantize
from fpsgen.attention.tiles import TileLists, mask_from_lists

from .mutant import load
from .test_sparse_sdpa import exact

GRID = (4, 10, 13)  # blocks at the far edge are smaller


def inputs(plan):
    """Tokens of a block are alike, but for one block of queries and one of keys; blocks come in three kinds."""
    random = torch.Generator().manual_seed(5)
    block = plan.layout.token_block
    centre = 1.5 * torch.randn(3, 2, 16, generator=random)[block % 3]
    q, k, v = (torch.randn(1, 520, 2, 16, generator=random) for _ in range(3))
    spread = 1 + 20 * torch.stack((block == 1, block == 2), -1)[..., None] + 1.5 * (block == 4)[:, None, None]
    return centre + 0.6 * q * spread, centre + 0.6 * k * spread.flip(1) + 20.0, v


def blocks_seen(q, k, plan):
    """bool [B*H, query tile, key block]."""
    layout = plan.layout
    tokens = [range(s, s + n) for s, n in zip(layout.block_start.tolist(), layout.block_len.tolist(), strict=True)]
    number = layout.num_blocks
    seen = torch.zeros(q.shape[0] * q.shape[2], layout.num_tiles, number, dtype=torch.bool)

    def summed_up(x):
        means, alike = [], []
        for block in tokens:
            part = x[list(block)]
            one = part / part.norm(dim=1, keepdim=True)
            means.append(part.mean(0))
            alike.append(float((one @ one.T).mean()) > plan.option("simthreshd1"))
        return torch.stack(means), alike

    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            query, key = q[b, :, h].double(), k[b, :, h].double()
            key = key - key.mean(0) if plan.smooth_k else key
            (mean_q, alike_q), (mean_k, alike_k) = summed_up(query), summed_up(key)
            for i in range(number):
                row = seen[b * q.shape[2] + h, int(layout.block_tile[i])]
                row |= ~torch.tensor(alike_k)
                if not alike_q[i]:
                    row[:] = True
                    continue
                score = mean_k @ mean_q[i] / q.shape[-1] ** 0.5
                score[~torch.tensor(alike_k)] = -torch.inf
                share = score.softmax(0)
                total = 0.0
                for rank, j in enumerate(share.argsort(descending=True).tolist()):
                    total += float(share[j])
                    if rank and total > plan.option("cdfthreshd"):
                        break
                    row[j] = True
    return seen


def plan_of(**settings):
    return AttentionPlan.of(Profile("p", "sparge", **settings), GRID)


def chosen(q, k, v, plan):
    """bool [B*H, query tile, key block], and the lists."""
    lists = select_lists(q, k, v, plan)
    seen = torch.zeros(*lists.list_count.shape, plan.layout.num_blocks + 1, dtype=torch.bool)
    index = lists.list_index.long()
    return seen.scatter_(-1, torch.where(index < 0, plan.layout.num_blocks, index), True)[..., :-1], lists


SETTINGS = [
    {"tile": "blocks"},
    {"tile": (2, 5, 7), "options": {"cdfthreshd": 0.7}},
    {"tile": (4, 5, 7), "options": {"cdfthreshd": 0.3}},  # units of several kernel blocks
    {"tile": "blocks", "options": {"simthreshd1": -1.0}},
    {"tile": "blocks", "smooth_k": False, "options": {"cdfthreshd": 0.8}},
]


def judge(settings):
    plan = plan_of(**settings)
    q, k, v = inputs(plan)
    got, lists = chosen(q, k, v, plan)
    wanted = blocks_seen(q, k, plan)
    first = plan.layout.unit_first_block.tolist()
    for one, last in pairwise(first):  # a unit is seen as a whole
        wanted[..., one:last] = wanted[..., one:last].any(-1, keepdim=True)
    assert torch.equal(got, wanted)
    return got, plan, lists


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_blocks_are_those_of_the_definition(settings):
    got, plan, lists = judge(settings)
    assert 0.05 < got.double().mean() < 0.95
    sizes = plan.layout.block_len.double()
    pairs = (got * sizes).sum(-1) @ plan.layout.tile_sizes.double() / plan.num_tokens**2
    assert float(kept_density(lists, plan)) == pytest.approx(float(pairs.mean()))


def test_output_is_attention_over_those_blocks():
    plan = plan_of(tile="blocks", options={"cdfthreshd": 0.7})
    q, k, v = inputs(plan)
    out = attend(q, k, v, plan)
    smooth = (k - k.mean(1, keepdim=True)).to(k.dtype)
    lists = select_lists(q, k, v, plan)
    mask = mask_from_lists(TileLists(*lists), plan.layout)
    true, _ = exact(*fake_quantize(q, smooth, v, plan.layout, int8_qk=True), mask)
    assert float((out - true).norm() / true.norm()) < 3e-2


def test_nothing_alike_is_dense():
    q, k, v = (torch.randn(1, 520, 2, 16, generator=torch.Generator().manual_seed(1)) for _ in range(3))
    got, lists = chosen(q, k, v, plan := plan_of(tile="blocks"))
    assert got.all() and float(kept_density(lists, plan)) == pytest.approx(1.0)


def test_defaults_are_the_authors():
    method = METHODS["sparge"]
    assert dict(method.options) == {"simthreshd1": 0.6, "cdfthreshd": 0.98, "pvthreshd": 50.0} and method.smooth_k
    assert AttentionPlan(GRID, "blocks", method="sparge").pv_threshold == 50.0


@pytest.mark.parametrize(
    ("threshold", "kernel"), [(0.0, "hopper"), (50.0, "hopper"), (20.0, "hopper"), (5.0, "triton")]
)
def test_a_threshold_that_counts_is_said_by_the_kernels_name(monkeypatch, threshold, kernel):
    """The sm_90 kernel leaves no block out."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    plan = AttentionPlan((9, 20, 26), "even", method="sparge", options={"pvthreshd": float(threshold)})
    assert plan.kernel("cuda", 128) == kernel


MISTAKES = {
    "blocks that are not alike are no longer seen": ("mask | ~alike_k", "mask | False"),
    "queries that are not alike no longer see all": ("| ~alike_q)", ")"),
    "unlike blocks take part in the softmax": ("qk.masked_fill(~alike_k, -torch.inf)", "qk"),
    "one more than the mass": ("sum(-1, keepdim=True).clamp(min=1)", "sum(-1, keepdim=True) + 1"),
    "least first": ("descending=True", "descending=False"),
    "no scale": (" * q.shape[-1] ** (-0.5)", ""),
    "keys as they are": ("if plan.smooth_k", "if False"),
    "lengths in place of directions": ("direction.square().sum(-1)", "direction.norm(dim=-1)"),
    "padding counts": ("real / layout.block_len[:, None]", "real / layout.block"),
}


@pytest.mark.parametrize("change", MISTAKES.values(), ids=MISTAKES)
def test_planted_mistakes_are_caught(change, tmp_path, monkeypatch):
    mutant = load(sparge, tmp_path, change)
    monkeypatch.setitem(METHODS, "sparge", mutant.METHOD)
    with pytest.raises(AssertionError):
        for settings in SETTINGS:
            judge(settings)
