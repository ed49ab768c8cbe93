"""Quantizing a float graph after training: calibration, rounding, a precision for each layer under a budget, and what it cost.

`quantize` and `diagnose` (tool.py) are the whole of it; `Plan` (plan.py) says what was decided, `Report` (report.py) what was found.
"""

from __future__ import annotations

from .applying import apply_plan
from .plan import Plan
from .recipes import RECIPES, Recipe
from .report import Report
from .tool import Quantized, diagnose, quantize

__all__ = ["RECIPES", "Plan", "Quantized", "Recipe", "Report", "apply_plan", "diagnose", "quantize"]
