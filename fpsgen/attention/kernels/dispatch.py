"""Choose and start the kernels of one attention call.

Legend: B batch, L tokens (tile order), H heads, D head dim.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from fpsgen.attention.kernels.attend_portable import TRITON, launch_portable
from fpsgen.attention.kernels.launch_config import HEAD_DIMS, PortableConfig, Sm90Config, choose_portable, choose_sm90
from fpsgen.attention.kernels.quantize_qkv import quantize_into
from fpsgen.attention.kernels.workspace import Workspace, make_workspace
from fpsgen.attention.norm_rope import NormRope
from fpsgen.attention.plan import BlockLists, DeviceTables, leaves_out
from fpsgen.attention.quantize import E4M3_MAX, FP8Output


def attention_kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tables: DeviceTables,
    lists: BlockLists,
    fp8: bool,
    granularity: int = 1,
    norm_rope: NormRope | None = None,
    return_lse: bool = True,
    smooth_k: bool = False,
    center_v: bool = False,
    int8_qk: bool = False,
    pv_threshold: float = 0.0,
    fp8_out: bool = False,
    *,
    config: PortableConfig | Sm90Config | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor | FP8Output, torch.Tensor | None]:
    """Attention of q, k, v [B, L, H, D] (tile order) over lists of key blocks, as attention_reference does it.

    fp8: Q, K, V and P in E4M3, one scale per `granularity` kernel blocks of Q and K; Q and K in INT8 with int8_qk.
    pv_threshold, with fp8: a key block is left out for query rows of one program if none of their scores comes within
    this distance (base 2) of its row's running maximum, rounded up to integers (SpargeAttn, arXiv 2502.18137, section
    3.4); 0: none is. Otherwise products are in q's 16-bit type, bf16 for fp32 inputs. norm_rope: q and k are normed and
    rotated first. smooth_k, center_v: with fp8, K and V are quantized without their mean over all tokens, which neither
    out nor LSE shows but in their error. fp8_out, with fp8: out is an FP8Output. D may be up to 128. config: None
    chooses the fastest kernel that takes these inputs. out (contiguous [B, L, H, D] where D is 64 or 128) and lse (fp32
    [B, H, L]) may be given. Returns out in q's dtype and LSE (natural logarithm), None without return_lse. Raises
    ValueError for other head dims, and for lists whose number of groups is not 1, H or B*H.
    """
    batch, tokens, heads, dim = q.shape
    groups = lists.list_count.shape[0]
    if groups not in (1, heads, batch * heads):
        raise ValueError(f"lists have {groups} groups.\nGive 1, {heads} (heads) or {batch * heads} (batch x heads).")
    padded = next((d for d in HEAD_DIMS if d >= dim), 0)
    if not padded:
        raise ValueError(f"head dim is {dim}.\nThe kernels take head dims up to {HEAD_DIMS[-1]}.")
    dtype = torch.float8_e4m3fn if fp8_out else q.dtype
    if norm_rope and (padded != dim or not fp8):
        q, k = norm_rope.apply(q, k)
        norm_rope = None
    if padded != dim:
        q, k, v = (F.pad(x, (0, padded - dim)) for x in (q, k, v))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if not fp8 and q.dtype not in (torch.float16, torch.bfloat16):
        q, k, v = (x.bfloat16() for x in (q, k, v))
    out = torch.empty(q.shape, device=q.device, dtype=dtype) if out is None else out
    current = not q.is_cuda or q.device.index == torch.cuda.current_device()
    with nullcontext() if current else torch.cuda.device(q.device):
        config = config or choose(q, tables, fp8, pv_threshold)
        workspace = make_workspace(q, tables, fp8, not return_lse, int8_qk)
        if not return_lse:
            lse = workspace.lse
        elif lse is None:
            lse = torch.empty(batch, heads, tokens, device=q.device, dtype=torch.float32)
        if fp8:
            permuted = isinstance(config, Sm90Config)
            quantize_into(workspace, q, k, v, tables, granularity, permuted, norm_rope, smooth_k, center_v)
        out_scale = _output_units(workspace, center_v) if fp8_out else None
        quantized = workspace if fp8 else None
        launch(config, (q, k, v), quantized, tables, lists, out, lse, dim**-0.5, center_v, pv_threshold)
        if fp8 and smooth_k and return_lse:  # that of the keys as they were given
            q = norm_rope.apply(q, k)[0] if norm_rope else q
            lse += torch.einsum("blhd,bhd->bhl", q.float(), workspace.k_mean) * dim**-0.5
    out = out if padded == dim else out[..., :dim].contiguous()
    lse = lse if return_lse else None
    return (out, lse) if out_scale is None else (FP8Output(out, out_scale[:, :dim]), lse)


def _output_units(workspace: Workspace, center_v: bool) -> torch.Tensor:
    """Express V's scales and means in FP8Output's scale [H, D], which is returned: kernels then store its values."""
    v_scale = workspace.v_scale  # [B, H, D]
    bound = v_scale + workspace.v_mean.abs() / E4M3_MAX if center_v else v_scale
    scale = bound.amax(0)
    v_scale.div_(scale)
    if center_v:
        workspace.v_mean.div_(scale)
    return scale


def choose(q: torch.Tensor, tables: DeviceTables, fp8: bool, pv_threshold: float = 0.0) -> PortableConfig | Sm90Config:
    """The kernel and its launch configuration for q [B, L, H, 64 or 128]; the sm_90 kernel leaves no key block out."""
    block, dim = tables.layout.block, q.shape[-1]
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)
    sm90 = None
    if q.is_cuda and not leaves_out(pv_threshold):
        sm90 = choose_sm90(dim, block, tables.layout.blocks_per_tile, fp8, capability)
    return sm90 or choose_portable(dim, block, fp8, capability, TRITON)


def launch(
    config: PortableConfig | Sm90Config,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    quantized: Workspace | None,
    tables: DeviceTables,
    lists: BlockLists,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    center_v: bool = False,
    pv_threshold: float = 0.0,
) -> None:
    """Fill out [B, L, H, D] (contiguous) and lse fp32 [B, H, L] from inputs q, k, v, or from `quantized` if given.

    scale: softmax scale. center_v: V was quantized without its mean. The current device must be that of the tensors.
    """
    scale *= math.log2(math.e)
    if isinstance(config, PortableConfig):
        launch_portable(inputs, quantized, tables, lists, out, lse, scale, config, center_v, pv_threshold)
    elif quantized is not None:
        from fpsgen.attention.kernels.attend_fp8_sm90 import launch_fp8_sm90

        launch_fp8_sm90(quantized, tables, lists, out, lse, scale, config, center_v)
    else:
        from fpsgen.attention.kernels.attend_16bit_sm90 import launch_16bit_sm90

        launch_16bit_sm90(*inputs, tables, lists, out, lse, scale, config)
