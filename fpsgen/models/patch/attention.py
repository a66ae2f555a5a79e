"""The self-attention of a Wan block, run by a plan. Traceable by torch.compile(fullgraph=True).

The plan comes with the call, in the place of the rotary table: a block hands that on unseen, and gradient
checkpointing keeps it for the recomputation, however many forwards have run in between. Whatever is read in compiled
code becomes a guard of the compiled graph, so a processor reads nothing that differs between layers but whether its
layer is dense: 40 layers share one graph for each distinct plan. Counting is for eager runs only, see report.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from fpsgen.attention.norm_rope import NormRotary
from fpsgen.attention.op import attend
from fpsgen.attention.plan import AttentionPlan
from fpsgen.fused import FP8Rows
from fpsgen.models.patch.linear import project_rows
from fpsgen.models.patch.timer import AttentionClock


class Rotary(NamedTuple):
    """What a patched rope module gives the blocks: cos and sin fp32 [1, L, 1, D] in the order of the tokens, the plan
    of the step, the plan of layers that stay dense, and NormRotary's table where FP8 attention may norm and rotate.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    plan: AttentionPlan
    dense_plan: AttentionPlan
    table: torch.Tensor | None = None


class FpsAttnProcessor(WanAttnProcessor):
    """Replaces the processor of `blocks[layer].attn1`.

    dense: this layer runs by Rotary.dense_plan. count: told of every eager call. backend: what the user chose with
    set_attention_backend; it serves dense bf16 only. clock: measures eager calls, where one is set.
    """

    clock: AttentionClock | None = None

    def __init__(self, layer: int, dense: bool, count: Callable[[int], None], backend: Any = None) -> None:
        super().__init__()
        self.layer = layer
        self.dense = dense
        self.count = count
        self._attention_backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        """hidden_states [B, L, dim] to [B, L, dim]. Raises ValueError for cross-attention or a mask."""
        if encoder_hidden_states is not None or attention_mask is not None or not isinstance(rotary_emb, Rotary):
            raise ValueError("attn1 was called on its own, or with a mask.\nCall the transformer, without a mask.")
        if not torch.compiler.is_compiling():
            self.count(self.layer)
        plan = rotary_emb.dense_plan if self.dense else rotary_emb.plan
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in project(attn, hidden_states))
        rotary = None
        if rotary_emb.table is not None and plan.fp8:
            rotary = NormRotary(attn.norm_q.weight, attn.norm_k.weight, rotary_emb.table, attn.norm_q.eps)
        else:
            query, key = (norm(x.flatten(2)).view_as(x) for norm, x in ((attn.norm_q, query), (attn.norm_k, key)))
            # under autocast the norms come out in fp32, the value does not
            query, key = (rotate(x, rotary_emb.cos, rotary_emb.sin).type_as(value) for x in (query, key))
        if self.clock is None or torch.compiler.is_compiling():
            out = self._attend(query, key, value, plan, rotary)
        else:
            with self.clock(value.device):
                out = self._attend(query, key, value, plan, rotary)
        out = out.flatten(2, 3).type_as(value)
        return attn.to_out[1](attn.to_out[0](out))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: AttentionPlan,
        rotary: NormRotary | None,
    ) -> Any:
        if self._attention_backend is not None and plan.method == "bf16":
            return dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        if torch.is_autocast_enabled(value.device.type):  # the cast is done; nothing within is to be cast again
            with torch.autocast(value.device.type, enabled=False):
                return attend(query, key, value, plan)
        return attend(query, key, value, plan, rotary=rotary)


def plain_norms(attn: Any) -> bool:
    """Whether attn's norms are no more than their weights: nothing hooked or replaced."""
    norms = (attn.norm_q, attn.norm_k)
    return attn.norm_q.eps == attn.norm_k.eps is not None and all(
        type(norm) is torch.nn.RMSNorm
        and norm.weight is not None
        and not (norm._forward_hooks or norm._forward_pre_hooks or "forward" in vars(norm))
        for norm in norms
    )


def project(attn: Any, hidden_states: torch.Tensor | FP8Rows) -> tuple[torch.Tensor, ...]:
    """q, k, v [B, L, dim] of a WanAttention, fused or not. Modules are called, their weights never read: LoRA, fp8
    storage and quantized layers live in the call.
    """
    if isinstance(hidden_states, FP8Rows):
        return project_rows(attn, hidden_states)
    if attn.fused_projections:
        return attn.to_qkv(hidden_states).chunk(3, dim=-1)
    return attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of interleaved pairs: x [B, L, H, D]; cos, sin [1, L, 1, D] hold every value twice."""
    even, odd = x[..., 0::2], x[..., 1::2]
    c, s = cos[..., 0::2], sin[..., 0::2]
    return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2).type_as(x)
