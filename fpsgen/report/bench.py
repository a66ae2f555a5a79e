"""Rows of the end-to-end bench for people: a table, and one self-contained HTML page that fetches nothing."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from fpsgen.report.lines import columns

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1c;--soft:#666;--line:#ddd;--bar:#8aa4c8;--ours:#d9622b;--page:#fff}
@media (prefers-color-scheme:dark){:root{--ink:#eee;--soft:#aaa;--line:#444;--bar:#5d7699;--ours:#e57a45;
--page:#181818}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1200px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{margin:.2rem 0;color:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .5rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}.fps td{font-weight:600}
.videos{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:1rem}
figure{margin:0}video{width:100%;background:#000;border-radius:4px}figcaption{color:var(--soft)}
button{font:inherit;padding:.3rem 1rem;margin:.5rem .5rem .5rem 0}
svg text{fill:var(--ink);font:13px system-ui,sans-serif}
"""
_SCRIPT = """
const all=[...document.querySelectorAll('video')];
document.querySelector('#play').onclick=()=>{const go=all[0].paused;
for(const v of all){if(go){v.currentTime=all[0].currentTime;v.play()}else v.pause()}};
document.querySelector('#back').onclick=()=>{for(const v of all){v.currentTime=0}};
"""
_COLUMNS = {
    "method": "Method",
    "step": "s / step",
    "denoise": "Denoise, s",
    "total": "Total, s",
    "speedup": "Speed-up",
    "share": "Attention",
    "density": "Density",
    "memory": "Peak memory",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
}


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row of the end-to-end bench as a person reads it; "-" where there is no figure."""
    memory = row["peak_memory"]["cuda_bytes"]
    step = row["step_s"]
    return {
        "method": row["method"] + (" (baseline)" if row["method"] == row["baseline"] else ""),
        "step": f"{step['median']:.3f} ({step['min']:.3f}-{step['max']:.3f})",
        "denoise": f"{row['stages_s']['denoise']['median']:.2f}",
        "total": f"{row['total_s']['median']:.2f}",
        "speedup": f"{row['speedup_denoise']:.2f}x",
        "share": "-" if row["attention_share"] is None else f"{row['attention_share']:.0%}",
        "density": "-" if row["density"] is None else f"{row['density']:.0%}",
        "memory": "-" if memory is None else f"{memory / 1e9:.1f} GB",
        "psnr": f"{row['psnr_db']:.1f}" if row["psnr_db"] is not None else "equal" if row["ssim"] == 1 else "-",
        "ssim": "-" if row["ssim"] is None else f"{row['ssim']:.3f}",
    }


def setting(row: dict[str, Any]) -> str:
    """What was measured, on one line."""
    weights = ", random weights" if row["random_weights"] else ""
    size = f"{row['width']}x{row['height']}, {row['frames']} frames, {row['tokens']} tokens"
    return f"{row['model']}{weights}, {size}, {row['steps']} steps, guidance {row['guidance']:g}, seed {row['seed']}"


def where(row: dict[str, Any]) -> str:
    """Where it was measured, on one line."""
    versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    commit = f", commit {row['commit']}" if row["commit"] else ""
    return f"{row['device']}, {versions}{commit}, {row['created']}"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of text."""
    heads = {"method": "", "step": "s/step", "denoise": "denoise", "speedup": "speed-up", "share": "attn"}
    heads |= {"density": "density", "memory": "memory", "psnr": "PSNR", "ssim": "SSIM"}
    lines = [list(heads.values())]
    for row in rows:
        shown = cells(row) | {"method": row["method"], "step": f"{row['step_s']['median']:.3f}"}
        lines.append([shown[key] for key in heads])
    cpu = ["CPU: times of the plain reference, not of the GPU kernels"] if rows[0]["device"].startswith("CPU") else []
    return [setting(rows[0]), where(rows[0]), *cpu, *columns(lines)]


def page(rows: list[dict[str, Any]]) -> str:
    """The page. rows: of one bench, baseline first; MP4s are read from their "video"."""
    first = rows[0]
    videos = [(row["method"], Path(row["video"])) for row in rows if row["video"]]
    body = [
        f"<h1>fpsgen bench: {html.escape(' / '.join(row['method'] for row in rows))}</h1>",
        f"<p>{html.escape(first['prompt'])}</p>" if videos else "",
        f"<p>{html.escape(setting(first))}</p><p>{html.escape(where(first))}</p>",
        "<p>Speed-up and PSNR, SSIM (medians) are against the baseline, measured in the same process. "
        "Step times: median (smallest-largest).</p>",
        _cpu_note(first),
        _table(rows),
        "<h2>Denoising, seconds</h2>",
        _bars(rows),
    ]
    if videos:
        body += [
            "<h2>Videos</h2>",
            '<button id="play">Play / pause all</button><button id="back">From the start</button>',
        ]
        body += ['<div class="videos">', *(_video(name, path) for name, path in videos), "</div>"]
        body += [f"<script>{_SCRIPT}</script>"]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>fpsgen bench</title>'
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src data:; img-src data:"
    head += f'<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">'
    head = f"<head>{head}<style>{_STYLE}</style></head>"
    return f'<!doctype html><html lang="en">{head}<body>{"".join(body)}</body></html>\n'


def _cpu_note(row: dict[str, Any]) -> str:
    if not row["device"].startswith("CPU"):
        return ""
    return "<p><strong>CPU: these are times of the plain reference, not of the GPU kernels.</strong></p>"


def _table(rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS.values())
    lines = []
    for row in rows:
        shown = cells(row)
        kind = ' class="fps"' if row["method"] == "fps" else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(shown[key])}</td>" for key in _COLUMNS) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _bars(rows: list[dict[str, Any]]) -> str:
    """Horizontal bars, self-attention in a lighter shade where it was measured."""
    longest = max(row["stages_s"]["denoise"]["median"] for row in rows)
    parts = []
    for index, row in enumerate(rows):
        seconds, y = row["stages_s"]["denoise"]["median"], 30 * index
        width = max(1.0, 620 * seconds / longest)
        colour = "var(--ours)" if row["method"] == "fps" else "var(--bar)"
        parts.append(f'<text x="0" y="{y + 16}">{html.escape(row["method"])}</text>')
        parts.append(f'<rect x="70" y="{y}" width="{width:.1f}" height="22" fill="{colour}"/>')
        if row["attention_share"] is not None:
            parts.append(
                f'<rect x="70" y="{y}" width="{width * row["attention_share"]:.1f}" height="22" fill="#fff" '
                'fill-opacity=".35"><title>self-attention</title></rect>'
            )
        label = f"{seconds:.2f} s, {row['speedup_denoise']:.2f}x"
        parts.append(f'<text x="{76 + width:.1f}" y="{y + 16}">{label}</text>')
    size = 30 * len(rows)
    frame = f'<svg viewBox="0 0 820 {size}" width="100%" role="img" aria-label="seconds of denoising">'
    return f"{frame}{''.join(parts)}</svg><p>The lighter part of a bar is self-attention.</p>"


def _video(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><video muted loop playsinline controls preload="auto" src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
    )
