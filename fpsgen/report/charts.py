"""Small SVG charts for the bench's page: numbers in, text out. Texts are escaped here."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fpsgen.attention.methods import METHODS

OTHER_COLOUR = "#888888"
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 250, 46, 34
LETTER = 7  # about the width of a letter
DOCUMENT = "max-width:640px;font:13px system-ui,sans-serif;background:#fff;--line:#bbb"


class Point(NamedTuple):
    name: str
    x: float
    y: float
    colour: str


def colour_of(method: str) -> str:
    """A method's colour, "#rrggbb", in every chart; grey for one that is not known."""
    return METHODS[method].colour if method in METHODS else OTHER_COLOUR


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Points with their names beside them, names apart from each other; those that find no room show in a tip."""
    if not points:
        return ""
    x_low, x_high = _range([point.x for point in points])
    y_low, y_high = _range([point.y for point in points])
    parts = _axes(x_label, y_label, (x_low, x_high), (y_low, y_high))
    spots = [(_place(point.x, x_low, x_high, True), _place(point.y, y_low, y_high, False)) for point in points]
    taken = [(x - 5, x + 5, y + 4) for x, y in spots]  # left, right, base line
    for point, (x, y) in zip(points, spots, strict=True):
        name = html.escape(point.name)
        tip = f"<title>{name}</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{point.colour}">{tip}</circle>')
        for left, right, line, anchor in _beside(x, y, LETTER * len(point.name)):
            if not any(abs(line - height) < 12 and left < b and a < right for a, b, height in taken):
                taken.append((left, right, line))
                edge = left if anchor == "start" else right
                parts.append(f'<text x="{edge:.1f}" y="{line:.1f}" text-anchor="{anchor}">{name}</text>')
                break
    return _svg(parts, f"{y_label} against {x_label}")


def _beside(x: float, y: float, width: float) -> Iterator[tuple[float, float, float, str]]:
    """Places of a name near its point, the best first: left, right, base line, anchor."""
    for left, anchor in ((x + 9, "start"), (x - 9 - width, "end")):
        for shift in (0, -13, 13, -26, 26):
            line = y + 4 + shift
            if left > LEFT and left + width < WIDTH and 24 < line < HEIGHT - BOTTOM:
                yield left, left + width, line, anchor


def lines(
    series: Sequence[tuple[str, str, Sequence[float]]], x_label: str, y_label: str, last: int | None = None
) -> str:
    """Curves over 1, 2, 3 ..., or evenly from 1 to `last`; series: (name, colour, values)."""
    longest = max((len(values) for _, _, values in series), default=0)
    if longest < 2:
        return ""
    last = last or longest
    places = [1 + i * (last - 1) / (longest - 1) for i in range(longest)]
    placed = [(name, colour, list(zip(places, values, strict=False))) for name, colour, values in series]
    return curves(placed, x_label, y_label, (1, last))


def curves(
    series: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    x_label: str,
    y_label: str,
    across: tuple[float, float],
) -> str:
    """Curves through points. series: (name, colour, points (x, y)). across: range of x."""
    if not series:
        return ""
    y_high = max(y for _, _, points in series for _, y in points) * 1.05 or 1.0
    parts = _axes(x_label, y_label, across, (0.0, y_high), counted=True)
    for name, colour, points in series:
        spots = [(f"{_place(x, *across, True):.1f}", f"{_place(y, 0.0, y_high, False):.1f}") for x, y in points]
        drawn = " ".join(map(",".join, spots))
        parts.append(
            f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2">'
            f"<title>{html.escape(name)}</title></polyline>"
        )
        if len(spots) == 1:  # no line shows it
            parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in spots]
    return _svg(parts, f"{y_label} by {x_label}")


def document(body: str, names: Sequence[tuple[str, str]]) -> str:
    """A chart as a file of its own, with a legend below. names: (name, colour) of the curves."""
    legend, x, y = [], LEFT, HEIGHT + 14
    for name, colour in names:
        width = 20 + LETTER * len(name)
        if x + width > WIDTH:
            x, y = LEFT, y + 16
        legend.append(f'<text x="{x}" y="{y}" fill="{colour}">{html.escape(name)}</text>')
        x += max(70, width)
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" style="{DOCUMENT}"'
    body = body.replace(_view(HEIGHT), _view(y + 8), 1)
    return body.replace("<svg", opening, 1).replace("</svg>", f"{''.join(legend)}</svg>", 1) + "\n"


def _axes(
    x_label: str, y_label: str, x: tuple[float, float], y: tuple[float, float], counted: bool = False
) -> list[str]:
    """counted: whole numbers alone below."""
    base = HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} 8V{base}H{WIDTH - 8}" fill="none" stroke="var(--line)"/>']
    for value in [each for each in _ticks(*x) if not counted or each == int(each)]:
        left = min(_place(value, *x, True), WIDTH - 14)
        parts.append(f'<text class="tick" x="{left:.1f}" y="{base + 14}" text-anchor="middle">{value:g}</text>')
    for value in _ticks(*y):
        height = _place(value, *y, False)
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{height + 4:.1f}" text-anchor="end">{value:g}</text>')
        if value > y[0]:
            parts.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - 8}" stroke="var(--line)" stroke-dasharray="2 4"/>')
    parts.append(f'<text class="tick" x="{WIDTH - 8}" y="{HEIGHT - 4}" text-anchor="end">{html.escape(x_label)}</text>')
    parts.append(f'<text class="tick" x="{LEFT + 6}" y="16">{html.escape(y_label)}</text>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers in a range, three to six of them."""
    rough = (high - low) / 4 or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * min((1, 2, 5, 10), key=lambda factor: abs(factor * size - rough))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _place(value: float, low: float, high: float, across: bool) -> float:
    share = (value - low) / ((high - low) or 1.0)
    return LEFT + share * (WIDTH - LEFT - 8) if across else (HEIGHT - BOTTOM) - share * (HEIGHT - BOTTOM - 24)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _svg(parts: list[str], label: str) -> str:
    return f'<svg {_view(HEIGHT)} role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def _view(height: int) -> str:
    return f'viewBox="0 0 {WIDTH} {height}"'
