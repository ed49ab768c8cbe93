"""The op set; `table.py` shows it whole. Whoever has ops has graphs to print, so the printer comes along."""

from .. import printer as printer
