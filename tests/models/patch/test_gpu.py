"""fpsgen.apply on a CUDA device: the Triton path, no waiting for the device, compilation, offloading."""

from __future__ import annotations

import threading

import pytest
import torch
import wan_cases as case
from diffusers.hooks import apply_group_offloading
from tiny import tiny_transformer

from fpsgen import apply
from fpsgen.models.patch.timer import Timer

pytestmark = pytest.mark.gpu

GIVEN = {"step_index": 0, "sigma": 0.5, "num_inference_steps": 4}


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return tiny_transformer(heads=2, head_dim=64, layers=3)


def on_gpu(dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    given = case.inputs(seed)
    return {name: x.cuda().to(dtype) if x.is_floating_point() else x.cuda() for name, x in given.items()}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm())


def test_dense_equals_stock(transformer):
    transformer.cuda()
    stock = case.forward(transformer, **on_gpu(torch.float32))
    with apply(transformer, case.one(case.TILED), strict=True):
        assert relative(case.forward(transformer, **on_gpu(torch.float32)), stock) < 1e-4


@pytest.mark.parametrize("profile", [case.SPARSE, case.FP8], ids=lambda p: p.name)
def test_the_kernel_gives_what_the_reference_gives(transformer, profile):
    with apply(transformer, case.one(profile)):
        reference = case.forward(transformer)
    stock = case.forward(transformer)
    transformer.cuda().to(torch.bfloat16)
    with apply(transformer, case.one(profile), strict=True) as handle:
        ours = case.forward(transformer, **on_gpu(torch.bfloat16))
        assert handle.report()["kernels"] == {"triton": 3}
    assert relative(ours, reference) < 0.05 < relative(stock, reference)


@pytest.mark.parametrize("profile", [case.TILED, case.SPARSE, case.FP8], ids=lambda p: p.name)
def test_a_step_does_not_wait_for_the_device(transformer, profile):
    transformer.cuda().to(torch.bfloat16)
    arguments = on_gpu(torch.bfloat16)
    with apply(transformer, case.one(profile)), torch.no_grad():
        for mode in ("default", "error"):  # the first forward builds the lists
            torch.cuda.set_sync_debug_mode(mode)
            try:
                with transformer.cache_context("cond", **GIVEN):
                    transformer(**arguments, return_dict=False)
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_compiled_blocks(transformer):
    torch._dynamo.reset()
    transformer.cuda().to(torch.bfloat16)
    schedule = case.mixed(case.FP8, case.SPARSE, dense_layers=(0,))
    with apply(transformer, schedule) as handle:
        with handle.fixed_sigma(0.9):
            eager = case.forward(transformer, **on_gpu(torch.bfloat16))
        transformer.compile_repeated_blocks(fullgraph=True)
        for sigma in (0.9, 0.1, 0.9):
            with handle.fixed_sigma(sigma):
                ours = case.forward(transformer, **on_gpu(torch.bfloat16))
        assert relative(ours, eager) < 0.03


def test_group_offload(transformer):
    reference = transformer.cuda()
    with apply(reference, case.one(case.FP8)):
        plain = case.forward(reference, **on_gpu(torch.float32))
    reference.cpu()
    apply_group_offloading(
        reference,
        onload_device=torch.device("cuda"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    with apply(reference, case.one(case.FP8)) as handle:
        assert relative(case.forward(reference, **on_gpu(torch.float32)), plain) < 1e-4
        assert handle.report()["kernels"] == {"triton": 3}


def test_a_training_step(transformer):
    transformer.cuda().train().enable_gradient_checkpointing()
    handle = apply(transformer, case.mixed(case.FP8, case.OTHER))
    with torch.autocast("cuda", torch.bfloat16), handle.fixed_sigma(0.9):
        loss = transformer(**on_gpu(torch.float32), return_dict=False)[0].square().mean()
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in transformer.blocks.parameters())


@pytest.mark.parametrize("profile", [case.SPARSE, case.FP8], ids=lambda p: p.name)
def test_two_threads_on_one_transformer(transformer, profile):
    """Their launches interleave on one stream: what a call quantizes must be its own."""
    transformer.cuda().to(torch.bfloat16)
    arguments = [on_gpu(torch.bfloat16, seed) for seed in (0, 1)]
    with apply(transformer, case.one(profile), strict=True):
        alone = [case.forward(transformer, **given) for given in arguments]
        wrong: list[int] = []

        def work(number: int) -> None:
            for _ in range(50):
                ours = case.forward(transformer, **arguments[number])
                if not torch.equal(ours, alone[number]):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong and not torch.equal(*alone)


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@needs_two
@pytest.mark.parametrize("linear", ["bf16", "fp8"])
@pytest.mark.parametrize("profile", [case.TILED, case.SPARSE, case.FP8], ids=lambda p: p.name)
def test_a_model_on_the_second_device(transformer, profile, linear):
    """Device 0 is the current one throughout. Launches, streams and events must be those of the tensors' device."""
    arguments = on_gpu(torch.bfloat16)
    transformer.to("cuda:0", torch.bfloat16)
    with apply(transformer, case.one(profile), strict=True, linear=linear):
        expected = case.forward(transformer, **arguments)
    transformer.to("cuda:1")
    second = {name: x.to("cuda:1") for name, x in arguments.items()}
    with apply(transformer, case.one(profile), strict=True, linear=linear) as handle:
        case.forward(transformer, **second)
        torch.cuda.synchronize(1)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with handle.timer() as timer:
            begin.record(torch.cuda.current_stream(1))
            ours = case.forward(transformer, **second)
            end.record(torch.cuda.current_stream(1))
        end.synchronize()
        assert torch.cuda.current_device() == 0
        assert timer.calls() == 3 and 0 < timer.seconds() <= begin.elapsed_time(end) / 1e3
    assert ours.device.index == 1 and relative(ours, expected) < 1e-2


@needs_two
def test_the_timer_sees_the_second_device():
    """Work queued on device 1 alone: events on device 0's stream would measure next to nothing."""
    x = torch.randn(4096, 4096, device="cuda:1")
    x @ x
    torch.cuda.synchronize(1)
    timer = Timer()
    with timer.measure("attention", x.device):
        for _ in range(50):
            x = x @ x * 1e-3
    assert timer.seconds() > 50 * 2 * 4096**3 / 1e15  # no device does a PFLOP/s in fp32
    assert torch.cuda.current_device() == 0


@needs_two
def test_blocks_spread_over_two_devices(transformer):
    """accelerate's dispatch_model: attention runs where the block lies, not where the latents do."""
    from accelerate import dispatch_model

    arguments = on_gpu(torch.bfloat16)
    transformer.to("cuda:0", torch.bfloat16)
    with apply(transformer, case.one(case.FP8)):
        expected = case.forward(transformer, **arguments)
    outer = {name: 0 for name, _ in transformer.named_children() if name != "blocks"} | {"scale_shift_table": 0}
    # diffusers multiplies what norm_out gives by a scale on the last block's device: the two go together
    parts = outer | {"blocks.0": 0, "blocks.1": 1, "blocks.2": 1, "norm_out": 1, "proj_out": 1}
    spread = dispatch_model(transformer, parts)
    assert case.forward(spread, **arguments).device.index == 0  # it runs without ours
    with apply(spread, case.one(case.FP8), strict=True):
        assert relative(case.forward(spread, **arguments), expected) < 1e-2
