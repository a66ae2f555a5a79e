"""What limits attention: power and clock of the GPU, and the CPU's time for a call.

`python -m tools.power FOLDER` writes clock.json and host.json as in figures/, on a GPU; that host.json joins
several processes, by median. Rates "after a pause" are of the second call after idling, before a power limit pulls the
clock down; clock and power are medians of nvidia-smi's samples while calls repeat.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fpsgen.attention.op import attend
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.tiles import Size3
from fpsgen.bench.baselines import baselines, fa3_fp8_alone
from fpsgen.bench.kernel import attend_alone, density_of, norm_rope, operations
from fpsgen.bench.provenance import provenance
from fpsgen.bench.shapes import Shape, plan_for
from fpsgen.bench.timing import captured, measure
from tools.command_line import parse_on_gpu, parser_of

CLOCK = {
    "what": "Attention",
    "cold": "TFLOP/s after a pause",
    "sustained": "sustained",
    "mhz": "SM clock, MHz",
    "watt": "Power, W",
    "per_clock": "FLOP a clock and SM",
}
HOST = {"what": "Call", "us": "Host time, us, median"}
SMI = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw.instant", "--format=csv,noheader,nounits", "-lms", "40"]
Call = Callable[[], object]


def clock(grid: Size3, heads: int, device: torch.device, seconds: float = 0.8, rounds: int = 2) -> list[dict[str, Any]]:
    """Rows for FP8 attention without quantization (on Hopper; elsewhere the operator), and for the baselines."""
    base_row = {"schema": "fpsgen.bench.clock/1", **provenance(device), "heads": heads}
    shape = Shape("", grid, heads)
    q, k, v = shape.inputs(device)
    dense = AttentionPlan(grid, method="fp8")
    plans = {"fps, fit": plan_for(shape, "fps", 0.11), "fp8, dense": dense}
    plans["fps, tiles (6, 8, 8)"] = plan_for(Shape("", grid, heads, tile=(6, 8, 8)), "fps", 0.11)
    calls: dict[str, tuple[AttentionPlan, Call]] = {}
    for name, plan in plans.items():
        alone = plan.kernel(device, shape.dim) == "hopper"
        calls[name] = plan, attend_alone(plan, q, k, v) if alone else partial(attend, q, k, v, plan)
    found, _ = baselines(device)
    if "fa3-fp8" in found:
        calls["fa3-fp8 without casts"] = dense, fa3_fp8_alone(q, k, v)
    calls |= {name: (dense, partial(call, q, k, v)) for name, call in found.items() if name in ("sdpa", "sdpa-cudnn")}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for name in [name for _ in range(rounds) for name in calls]:
        plan, call = calls[name]
        work = operations(density_of(plan), q) / 1e9
        time.sleep(min(0.7, seconds))
        cold = _second(call, device)
        with_smi, times = repeat(call, device, seconds)
        samples[name].append({"cold": work / cold, "sustained": work / statistics.median(times), **with_smi})
    cores = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return [
        {**base_row, "density": round(density_of(calls[name][0]), 4)} | _row(name, sample, cores)
        for name, sample in samples.items()
    ]


def host(device: torch.device, calls: int = 200) -> list[dict[str, Any]]:
    """Rows for calls of which the CPU is the slower part: 5,760 tokens, 12 heads."""
    base_row = {"schema": "fpsgen.bench.host/1", **provenance(device)}
    shape = Shape("", (9, 20, 32), 12)
    inputs = shape.inputs(device)
    plans = {m: AttentionPlan(shape.grid, window=(0.5, 0.5, 0.5), method=m) for m in ("fps", "sta")}
    timed: dict[str, Call] = {f"attend, {m}": partial(attend, *inputs, plan) for m, plan in plans.items()}
    timed["attend, fps with norm and RoPE"] = partial(attend, *inputs, plans["fps"], norm_rope=norm_rope(inputs[0]))
    if device.type == "cuda":
        timed["the same in a CUDA graph"] = captured(timed["attend, fps with norm and RoPE"])
    timed["torch.empty of the output"] = partial(torch.empty_like, inputs[0])
    rows = []
    for name, call in timed.items():
        call()
        times = []
        for i in range(calls):
            if i % 20 == 0:
                _wait(device)
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e6)
        rows.append({**base_row, "what": name, "us": round(statistics.median(times), 1)})
    return rows


def _second(call: Call, device: torch.device) -> float:
    """Milliseconds of the second of two calls."""
    call()
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e3
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def repeat(call: Call, device: torch.device, seconds: float) -> tuple[dict[str, float], list[float]]:
    """Clock in MHz and power in W where nvidia-smi tells, milliseconds of calls."""
    try:
        smi = subprocess.Popen(SMI + _chosen(device), stdout=subprocess.PIPE, text=True)
    except OSError:
        smi = None
    limit = time.perf_counter() + seconds
    while time.perf_counter() < limit:
        call()
        _wait(device)
    times = measure(call, seconds, device).milliseconds
    if smi is None:
        return {}, times
    smi.terminate()
    lines = [line.split(",") for line in smi.communicate()[0].splitlines() if line.count(",") == 1]
    lines = lines[len(lines) // 3 :]  # by then it is warm
    if not lines:
        return {}, times
    return {key: statistics.median(float(line[i]) for line in lines) for i, key in enumerate(("mhz", "watt"))}, times


def _chosen(device: torch.device) -> list[str]:
    """Words by which nvidia-smi looks at this GPU alone."""
    return ["-i", f"GPU-{torch.cuda.get_device_properties(device).uuid}"] if device.type == "cuda" else []


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(name: str, samples: list[dict[str, float]], cores: int) -> dict[str, Any]:
    row: dict[str, Any] = {"what": name, "samples": samples}
    row |= {key: ", ".join(f"{s[key]:.0f}" for s in samples) for key in ("cold", "sustained")}
    if not all("mhz" in s for s in samples):
        return row | dict.fromkeys(("mhz", "watt", "per_clock"), "")
    row |= {key: f"{statistics.mean(s[key] for s in samples):.0f}" for key in ("mhz", "watt")}
    return row | {"per_clock": f"{statistics.mean(s['sustained'] / s['mhz'] for s in samples) * 1e6 / cores:.0f}"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("power", __doc__)
    parser.add_argument("folder", type=Path, help="where clock.json and host.json go")
    folder = parse_on_gpu(parser, arguments).folder
    where = torch.device("cuda")
    tables = {"clock": (CLOCK, clock((21, 45, 80), 12, where)), "host": (HOST, host(where))}
    for name, (columns, rows) in tables.items():
        text = json.dumps({"columns": columns, "rows": rows}, indent=1)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
