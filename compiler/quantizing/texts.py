"""Reports as lines of text and as plain data for JSON.

In the data, a figure that was not measured, and one that is infinite, is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from .report import LayerReport, Report

LONGEST = 56  # letters of a layer's label that are shown


def plain(value: Any) -> Any:
    """The report as dicts, lists and numbers that JSON has."""
    return _finite(msgspec.to_builtins(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report_lines(report: Report) -> list[str]:
    """What a run found, for people: the verdict, the whole before and after, layers that were left alone."""
    before, after = report.before, report.after
    lines = [f"{report.model}, {report.recipe}: {'worth it' if report.worth else 'not worth it'}", f"  {report.verdict}"]
    if math.isfinite(after.seconds):
        lines.append(f"  time     {duration_text(before.seconds):>12} in float, {duration_text(after.seconds):>12} quantized: "
                     f"{ratio_text((before.seconds, after.seconds))}")
    lines.append(f"  weights  {size_text(before.bytes):>12} in float, {size_text(after.bytes):>12} quantized: "
                 f"{ratio_text((before.bytes, after.bytes))}")
    if math.isfinite(after.loss):
        lines.append(f"  loss     {loss_text(after.loss)} by {report.metric}, of {loss_text(report.budget)} allowed; cosine "
                     f"{figure_text(after.cosine, '%.6f')}, signal to noise {figure_text(after.snr, '%.1f dB')}, same greatest value "
                     f"{share_text(after.agreement)}")
    left: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.reason:
            left.setdefault(layer.reason, []).append(layer.label)
    lines += [f"  left alone: {_shown(labels)}: {reason}" for reason, labels in left.items()]
    return lines


def _shown(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"


def ranking_lines(layers: Sequence[LayerReport]) -> list[str]:
    """Layers by the loss that each causes alone."""
    width = min(LONGEST, max((len(layer.label) for layer in layers), default=0))
    lines = []
    for number, layer in enumerate(layers, 1):
        label = layer.label if len(layer.label) <= LONGEST else f"...{layer.label[3 - LONGEST:]}"
        what = f"left alone: {layer.reason}" if layer.reason else (
            f"{loss_text(layer.loss):>10}  its own result {loss_text(layer.layer_error):>10}  {layer.precision}, "
            f"{layer.kind} {'x'.join(map(str, layer.shape))}")
        lines.append(f"{number:4}  {label:{width}}  {what}")
    return lines


# --- figures ---------------------------------------------------------------------------------------------------------


def duration_text(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    return f"{seconds * 1e3:.3f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def size_text(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.2f} kB"


def loss_text(loss: float) -> str:
    """A share of one, as percent where it is no less than a thousandth of one."""
    if not math.isfinite(loss):
        return "–" if math.isnan(loss) else "∞"
    return "0" if loss == 0 else f"{100 * loss:.3f} %" if loss >= 1e-5 else f"{loss:.1e}"


def share_text(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.2f} %"


def figure_text(figure: float, form: str) -> str:
    return "–" if math.isnan(figure) else "∞" if math.isinf(figure) else form % figure


def ratio_text(pair: tuple[float, float]) -> str:
    before, after = pair
    return "–" if not before or not math.isfinite(before) or not math.isfinite(after) else f"{100 * after / before:.1f} %"
