"""The report of a run of the quantizer as one HTML page.

Needs jinja2 (the extra [quantize]). The page loads nothing from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from .report import FrontPoint, Report
from .texts import duration_text, figure_text, loss_text, ratio_text, share_text, size_text

WIDTH, HEIGHT = 640.0, 200.0
BAR = 120.0   # pixels of the layer that loses most
SHOWN = 40    # points of the front in the table; the curve has all


def render(report: Report) -> str:
    """The page."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    most = max((layer.loss for layer in report.layers if math.isfinite(layer.loss)), default=0.0)
    environment.filters.update(
        duration=duration_text, size=size_text, loss=loss_text, share=share_text, figure=figure_text, ratio=ratio_text,
        bar=lambda loss: round(BAR * loss / most) if most and math.isfinite(loss) else 0)
    return environment.get_template("report.html").render(
        report=report, width=WIDTH, height=HEIGHT, curve=curve(report.front, report.goal), shown=thinned(report.front),
        quantized=[layer for layer in report.layers if not layer.reason], left=[layer for layer in report.layers if layer.reason])


def curve(front: Sequence[FrontPoint], goal: str) -> dict[str, Any]:
    """The front as the points of an SVG polyline, with where each lies and what the axes reach."""
    pairs = [(point.loss, point.seconds if goal == "time" else float(point.bytes), point.chosen) for point in front]
    pairs = sorted(pair for pair in pairs if math.isfinite(pair[0]) and math.isfinite(pair[1]))
    right, top = (max((pair[axis] for pair in pairs), default=0.0) or 1.0 for axis in (0, 1))
    places = [(round(x / right * WIDTH, 1), round(HEIGHT - y / top * HEIGHT, 1), chosen) for x, y, chosen in pairs]
    return {"places": places, "points": " ".join(f"{x},{y}" for x, y, _ in places), "right": right, "top": top}


def thinned(front: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points for a table: evenly spread, with the chosen one."""
    step = max(1, -(-len(front) // SHOWN))
    return [point for number, point in enumerate(front) if number % step == 0 or point.chosen or number == len(front) - 1]
