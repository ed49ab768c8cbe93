"""The account of a run as one HTML page: coverage over time, what each mutator and each pass brought, the failures.

Needs the extra `[fuzz]` (jinja2). The page loads nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from .settings import Settings
from .supervisor import Account

WIDTH, HEIGHT = 720.0, 220.0


def render(settings: Settings, account: Account) -> str:
    """The page."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)
    curves = [[(point[0], float(point[2])) for point in tally.curve] for tally in account.tallies.values()]
    tables = {name: sorted(account.yields(name).items(), key=lambda item: (-item[1].gained, -item[1].tried))
              for name in ("mutators", "passes")}
    refusals: dict[str, int] = {}
    for tally in account.tallies.values():
        for reason, count in tally.refusals.items():
            refusals[reason] = refusals.get(reason, 0) + count
    return environment.get_template("report.html").render(
        settings=settings, account=account, tables=tables, lines=polylines(curves), width=WIDTH, height=HEIGHT,
        most=max((y for curve in curves for _, y in curve), default=0.0),
        refusals=sorted(refusals.items(), key=lambda item: -item[1])[:12])


def polylines(curves: Sequence[Sequence[tuple[float, float]]]) -> list[str]:
    """Curves as the points of SVG polylines, to one scale."""
    right = max((x for curve in curves for x, _ in curve), default=0.0) or 1.0
    top = max((y for curve in curves for _, y in curve), default=0.0) or 1.0
    return [" ".join(f"{x / right * WIDTH:.1f},{HEIGHT - y / top * HEIGHT:.1f}" for x, y in curve) for curve in curves if curve]
