"""The self-attention of Wan's blocks as a patch: one processor per block, one hook on the rope module.

The plan comes with the call, in the place of the rotary table: a block hands that on unseen, and gradient
checkpointing keeps it for the recomputation, however many forwards have run in between. Whatever is read in compiled
code becomes a guard of the compiled graph, so a processor reads nothing that differs between layers but whether its
layer is dense: 40 layers share one graph for each distinct plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from fpsgen.attention.methods import METHODS
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.op import attend, kept_density, select_lists
from fpsgen.attention.plan import AttentionPlan, BlockLists
from fpsgen.attention.schedule import Profile
from fpsgen.errors import USAGE, FpsgenError
from fpsgen.fused import FP8Channels, FP8Rows
from fpsgen.models.patch.forward_state import ForwardState
from fpsgen.models.patch.run_record import ATTENTION, DENSE_LAYER, LayerRun
from fpsgen.models.patch.stack import Run
from fpsgen.models.patch.swap_class import has_hooks

_AUTOMATIC = "fpsgen_automatic"


class Rotary(NamedTuple):
    """What a patched rope module gives the blocks.

    cos, sin: fp32 [1, L, 1, D] in the order of the tokens. plan: of the step. dense_plan: of layers that stay dense.
    table: NormRope's, where the kernel that quantizes norms and rotates as well, else None. backend: diffusers'
    attention backend that a context manager or the environment chose, None for the default.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    plan: AttentionPlan
    dense_plan: AttentionPlan
    table: torch.Tensor | None = None
    backend: AttentionBackendName | None = None


class FpsAttnProcessor(WanAttnProcessor):
    """Replaces the processor of `blocks[layer].attn1`.

    dense: this layer runs by Rotary.dense_plan. backend: what the user chose with set_attention_backend; it serves
    dense 16-bit attention only.
    """

    def __init__(self, layer: int, dense: bool, run: Run, backend: Any = None) -> None:
        super().__init__()
        self.layer = layer
        self.dense = dense
        self.run = run
        self._attention_backend = backend

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Rotary | None = None,
        fp8_out: bool = False,
    ) -> torch.Tensor:
        """hidden_states [B, L, dim] to [B, L, dim]. fp8_out: attn.to_out takes FP8Channels. Raises ValueError for
        cross-attention or a mask.
        """
        if encoder_hidden_states is not None or attention_mask is not None or not isinstance(rotary_emb, Rotary):
            raise ValueError("attn1 was called on its own, or with a mask.\nCall the transformer, without a mask.")
        query, key, value = project(attn, hidden_states)
        out = self_attention(attn, query, key, value, rotary_emb, self, fp8_out)
        return attn.to_out[1](attn.to_out[0](out))


def project(attn: Any, hidden_states: torch.Tensor | FP8Rows) -> tuple[torch.Tensor, ...]:
    """q, k, v [B, L, dim] of a WanAttention, fused or not. Modules are called, their weights never read: LoRA, fp8
    storage and quantized layers live in the call.
    """
    if attn.fused_projections:
        return attn.to_qkv(hidden_states).chunk(3, dim=-1)
    return attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)


def self_attention(
    attn: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotary_emb: Rotary,
    processor: FpsAttnProcessor,
    fp8_out: bool = False,
) -> torch.Tensor | FP8Channels:
    """All of attn1 between its projections: norms, rotary embedding, attention. query, key, value and the result
    [B, L, H*D]; traceable by torch.compile(fullgraph=True). fp8_out: give FP8Channels where attention is in FP8.
    """
    plan = rotary_emb.dense_plan if processor.dense else rotary_emb.plan
    fp8_out = fp8_out and plan.fp8
    query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
    norm_rope = None
    if rotary_emb.table is not None and plan.fp8:
        norm_rope = NormRope(attn.norm_q.weight, attn.norm_k.weight, rotary_emb.table, attn.norm_q.eps)
    else:
        query, key = (norm(x.flatten(2)).view_as(x) for norm, x in ((attn.norm_q, query), (attn.norm_k, key)))
        # under autocast the norms come out in fp32, the value does not
        query, key = (rotate(x, rotary_emb.cos, rotary_emb.sin).type_as(value) for x in (query, key))
    backend = processor._attention_backend or rotary_emb.backend
    if torch.compiler.is_compiling():
        out = _attention(query, key, value, plan, norm_rope, backend, fp8_out=fp8_out)
    else:
        run = processor.run
        run.count(ATTENTION, processor.layer)
        if run.observer is not None and run.forward is not None:
            inputs = (query, key) if norm_rope is None else norm_rope.apply(query, key)
            run.observer(processor.layer, *inputs, value, run.forward)
        with run.time(ATTENTION, value.device):
            lists = select_lists(query, key, value, plan) if plan.rule.online else None
            out = _attention(query, key, value, plan, norm_rope, backend, lists, fp8_out)
        if lists is not None:
            run.count_density(processor.layer, kept_density(lists, plan))
    if fp8_out:
        return FP8Channels(out.values.flatten(2), out.scale.flatten())
    return out.flatten(2, 3).type_as(value)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    norm_rope: NormRope | None,
    backend: AttentionBackendName | None,
    lists: BlockLists | None = None,
    fp8_out: bool = False,
) -> Any:
    """query, key, value [B, L, H, D] to [B, L, H, D], with fp8_out (in FP8, not under autocast) to FP8Output. lists: of
    this call, where the method chooses keys online.
    """
    if backend is not None and takes_backend(plan):
        return dispatch_attention_fn(query, key, value, backend=backend)
    if torch.is_autocast_enabled(value.device.type):  # the cast is done; nothing within is to be cast again
        with torch.autocast(value.device.type, enabled=False):
            return attend(query, key, value, plan, lists=lists)
    return attend(query, key, value, plan, norm_rope=norm_rope, lists=lists, fp8_out=fp8_out)


def takes_backend(plan: AttentionPlan) -> bool:
    """Whether the attention backend that a user chose in diffusers computes this plan: dense, in 16 bit."""
    return not plan.needs_order


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of interleaved pairs: x [B, L, H, D]; cos, sin [1, L, 1, D] hold every value twice."""
    even, odd = x[..., 0::2], x[..., 1::2]
    c, s = cos[..., 0::2], sin[..., 0::2]
    if x.device.type == "cpu" and x.dtype == c.dtype == torch.float32 and not torch.compiler.is_compiling():
        # the same products; reading every other value one by one takes CPUs six times as long
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(c, s)).flatten(-2)
    return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2).type_as(x)


def plain_norms(attn: Any) -> bool:
    """Whether attn's norms are no more than their weights: nothing hooked or replaced."""
    norms = (attn.norm_q, attn.norm_k)
    return attn.norm_q.eps == attn.norm_k.eps is not None and all(
        type(norm) is torch.nn.RMSNorm and norm.weight is not None and not has_hooks(norm) for norm in norms
    )


class AttentionPatch:
    """Runs the self-attention of all blocks by the schedule. dense_layers: blocks that stay dense at every step."""

    component = ATTENTION

    def install(self, transformer: Any, run: Run) -> _InstalledAttention:
        """Raises FpsgenError USAGE where a block has an attention processor that is not diffusers' own."""
        for layer, block in enumerate(transformer.blocks):
            kind = type(block.attn1.processor)
            if kind is not WanAttnProcessor:
                raise FpsgenError(
                    f"layer {layer} has the attention processor {kind.__name__}, which fpsgen would replace",
                    "set diffusers' own first: transformer.set_attn_processor(WanAttnProcessor())",
                    USAGE,
                )
        return _InstalledAttention(transformer, run)


class _InstalledAttention:
    def __init__(self, transformer: Any, run: Run) -> None:
        self._run = run
        self._head_dim = transformer.config.attention_head_dim
        self._attentions = [block.attn1 for block in transformer.blocks]
        self._before = [attn.processor for attn in self._attentions]
        self._processors = [
            FpsAttnProcessor(layer, layer in run.schedule.dense_layers, run, old._attention_backend)
            for layer, old in enumerate(self._before)
        ]
        self._runs: dict[tuple[Any, ...], tuple[LayerRun, ...]] = {}
        for attn, processor in zip(self._attentions, self._processors, strict=True):
            attn.set_processor(processor)
        self._rope = transformer.rope.register_forward_hook(self._rope_hook)  # pyright: ignore[reportAttributeAccessIssue]

    def undo(self) -> None:
        self._rope.remove()
        for attn, ours, old in zip(self._attentions, self._processors, self._before, strict=True):
            if attn.processor is ours:
                old._attention_backend = ours._attention_backend  # set_attention_backend may have been called meanwhile
                attn.set_processor(old)

    def layer_runs(self, forward: ForwardState) -> tuple[LayerRun, ...]:
        replaced = [
            p.layer for p, attn in zip(self._processors, self._attentions, strict=True) if attn.processor is not p
        ]
        if replaced:
            raise FpsgenError(
                f"the attention processors of layers {replaced} were replaced after fpsgen.apply",
                "set processors before fpsgen.apply, or call handle.remove() first",
                USAGE,
            )
        active = active_backend()
        backends = tuple(processor._attention_backend or active for processor in self._processors)
        forward.backend = next((_name(backend) for backend in backends if backend is not None), None)
        key = (forward.profile.name, forward.plan, forward.device, backends)
        if key not in self._runs:
            self._runs[key] = tuple(
                self._layer_run(processor, backend, forward)
                for processor, backend in zip(self._processors, backends, strict=True)
            )
        return self._runs[key]

    def _layer_run(self, processor: FpsAttnProcessor, backend: Any, forward: ForwardState) -> LayerRun:
        plan = forward.dense_plan if processor.dense else forward.plan
        if backend is not None and takes_backend(plan):
            kernel = _name(backend)
        else:
            kernel = plan.kernel(forward.device, self._head_dim)
        reason = DENSE_LAYER if processor.dense else dense_reason(forward.profile, plan, self._run.method)
        return LayerRun(processor.layer, kernel, reason, plan.density)

    @torch.compiler.disable
    def _rope_hook(self, module: Any, args: Any, output: tuple[torch.Tensor, torch.Tensor]) -> Rotary:
        """Forward hook of the rope module: the table in the tokens' order, and the plans for the processors."""
        forward = self._run.forward
        assert forward is not None, "rope ran outside the transformer's forward"
        cos, sin = output
        if forward.order is not None:
            order = forward.order.tables(cos.device).order
            cos, sin = cos.index_select(1, order), sin.index_select(1, order)
        return Rotary(cos, sin, forward.plan, forward.dense_plan, self._table(forward.plan, cos, sin), active_backend())

    def _table(self, plan: AttentionPlan, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor | None:
        """NormRope's table where the kernel that quantizes can norm and rotate as well; it has no gradient."""
        if not plan.fuses_norm_rope(cos.device, self._head_dim) or torch.is_grad_enabled():
            return None
        if torch.is_autocast_enabled(cos.device.type) or not all(map(plain_norms, self._attentions)):
            return None
        return torch.cat((cos[0, :, 0, ::2], sin[0, :, 0, ::2]), -1).float()


def active_backend() -> AttentionBackendName | None:
    """diffusers' attention backend for models that have none of their own: attention_backend("...") or the environment
    variable DIFFUSERS_ATTN_BACKEND. None for the default.
    """
    backend, _ = _AttentionBackendRegistry.get_active_backend()
    return None if backend == AttentionBackendName.NATIVE else AttentionBackendName(backend)


def chosen_backend() -> AttentionBackendName | None:
    """active_backend(), but None where it is the one that was chosen automatically (see automatic_backend)."""
    backend = active_backend()
    return None if backend == getattr(_AttentionBackendRegistry, _AUTOMATIC, None) else backend


@contextmanager
def automatic_backend() -> Iterator[None]:
    """Meanwhile, the backend that is active now is nobody's choice: cross-attention may take a faster way. The mark
    lies beside the active backend, in diffusers' registry.
    """
    before = getattr(_AttentionBackendRegistry, _AUTOMATIC, None)
    setattr(_AttentionBackendRegistry, _AUTOMATIC, active_backend())
    try:
        yield
    finally:
        setattr(_AttentionBackendRegistry, _AUTOMATIC, before)


def _name(backend: Any) -> str:
    return str(getattr(backend, "value", backend))


def dense_reason(profile: Profile, plan: AttentionPlan, method: str | None) -> str | None:
    """Why a layer that follows the profile is dense, or None. method: what the user asked to run everything as."""
    if not plan.dense:
        return None
    if method is not None and METHODS[method].dense:
        return f"method_{method}"
    return "dense_by_schedule" if profile.sees_all else "window_covers_grid"
