"""What computes dense attention in 16 bits."""

import sys
from types import ModuleType

import accelerated as case
import pytest
import torch
from refusal import refuses

pytest.importorskip("diffusers", reason="diffusers is not installed")

from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from fpsgen import apply
from fpsgen.attention.schedule import Profile, Schedule
from fpsgen.errors import ENVIRONMENT
from fpsgen.models.patch import backend, text_kv
from fpsgen.models.patch.attention import active_backend, chosen_backend
from fpsgen.models.patch.backend import dense_backend, fastest_backend, flash_attention_3
from fpsgen.models.patch.block import FusedPatch

GPU, CPU = torch.device("cuda"), torch.device("cpu")
BF16 = (torch.bfloat16, 128)


@pytest.fixture
def machine(monkeypatch):
    """machine(capability, fa3, cudnn): what is there. fa3: name of the module that holds FlashAttention-3."""

    def pretend(capability, fa3=None, cudnn=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(backend, "_cudnn_computes", lambda *_: cudnn)
        for name in ("flash_attn_interface", "fa3_fwd_interface"):
            module = ModuleType(name)
            module.flash_attn_func = pretend
            monkeypatch.setitem(sys.modules, name, module if name == fa3 else None)

    return pretend


@pytest.mark.parametrize(
    ("capability", "fa3", "cudnn", "dtype", "name"),
    [
        ((9, 0), "fa3_fwd_interface", True, torch.bfloat16, "fa3"),
        ((9, 0), "flash_attn_interface", True, torch.bfloat16, "fa3"),
        ((9, 0), None, True, torch.bfloat16, "cudnn"),
        ((9, 0), "fa3_fwd_interface", True, torch.float16, "cudnn"),  # which fa3-fwd leaves out
        ((9, 0), None, False, torch.bfloat16, "auto"),
        ((10, 0), "fa3_fwd_interface", True, torch.bfloat16, "cudnn"),
        ((8, 0), "fa3_fwd_interface", True, torch.bfloat16, "auto"),
        ((9, 0), "fa3_fwd_interface", True, torch.float32, "auto"),
    ],
)
def test_the_fastest_that_is_there(machine, capability, fa3, cudnn, dtype, name):
    machine(capability, fa3, cudnn)
    assert fastest_backend(GPU, dtype, 128) == name
    assert fastest_backend(CPU, dtype, 128) == "auto"


def test_flash_attention_3_of_either_package_serves_diffusers(machine):
    machine((9, 0), "fa3_fwd_interface")
    before = attention_dispatch._CAN_USE_FLASH_ATTN_3, attention_dispatch.flash_attn_3_func
    for name in ("auto", "fa3"):
        with dense_backend(name, GPU, *BF16) as chosen:
            assert chosen == "fa3" and active_backend() == AttentionBackendName._FLASH_3
            assert attention_dispatch.flash_attn_3_func is flash_attention_3() is not None
        assert active_backend() is None
        assert (attention_dispatch._CAN_USE_FLASH_ATTN_3, attention_dispatch.flash_attn_3_func) == before


def test_cudnn_comes_first_where_nothing_was_named(machine):
    machine((9, 0))
    cudnn = int(torch.nn.attention.SDPBackend.CUDNN_ATTENTION.value)
    before = torch._C._get_sdp_priority_order()
    with dense_backend("auto", GPU, *BF16) as chosen:
        assert chosen == "cudnn" and torch._C._get_sdp_priority_order()[0] == cudnn and active_backend() is None
        q = torch.randn(1, 2, 8, 16)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)  # what cuDNN cannot do, others do
    assert torch._C._get_sdp_priority_order() == before
    with dense_backend("auto", CPU, *BF16) as chosen:
        assert chosen == "auto" and torch._C._get_sdp_priority_order() == before


def test_what_was_chosen_in_diffusers_stays(machine):
    machine((9, 0), "fa3_fwd_interface")
    with attention_backend("_native_math"), dense_backend("auto", GPU, *BF16) as chosen:
        assert chosen == "auto" and active_backend() == AttentionBackendName._NATIVE_MATH


def test_what_is_chosen_automatically_is_nobodys_choice(machine):
    machine((9, 0), "fa3_fwd_interface")
    with dense_backend("auto", GPU, *BF16):
        assert chosen_backend() is None and active_backend() == AttentionBackendName._FLASH_3
        with attention_backend("_native_math"):
            assert chosen_backend() == AttentionBackendName._NATIVE_MATH
    with dense_backend("fa3", GPU, *BF16):
        assert chosen_backend() == AttentionBackendName._FLASH_3
    assert chosen_backend() is None


@pytest.mark.parametrize("name", ["auto", "fa3"])
def test_cross_attention_leaves_padding_out_unless_a_backend_is_named(machine, monkeypatch, name):
    machine((9, 0), "fa3_fwd_interface")
    seen = []
    for module, function in ((text_kv, "cross_attention"), (text_kv, "dispatch_attention_fn")):
        monkeypatch.setattr(module, function, lambda q, *_, name=function, **__: seen.append(name) or q)
    transformer, given = case.transformer(), case.inputs()
    given["encoder_hidden_states"][:, 2:] = 0
    sparse = Schedule("sparse", (Profile("all", "fps", (3, 2, 4), density=0.5),), ((0.0, 1.0, "all"),))
    with (
        apply(transformer, sparse, linear="bf16", exact=True, patches=[FusedPatch(anywhere=True)]),
        dense_backend(name, GPU, *BF16),
    ):
        case.forward(transformer, given)
    assert set(seen) == {"cross_attention" if name == "auto" else "dispatch_attention_fn"}


def test_a_package_that_is_missing_is_named(machine):
    machine((9, 0))
    with refuses(ENVIRONMENT, "fa3"), dense_backend("fa3", GPU, *BF16):
        pass
    assert active_backend() is None


def test_an_error_within_passes_as_it_is(machine):
    machine((9, 0))
    with pytest.raises(RuntimeError, match="of the caller"), dense_backend("math", GPU, *BF16):
        raise RuntimeError("of the caller")
    assert active_backend() is None
