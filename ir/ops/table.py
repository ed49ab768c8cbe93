"""The whole op set on one page. A new op is a class and a row here; the tests ask for the rest."""

from __future__ import annotations

from ..graph import Op
from .compute import (
                      ArgReduce,
                      ArgSort,
                      Bitcast,
                      Cast,
                      Conv,
                      Cumulative,
                      Dot,
                      Elementwise,
                      PackedConv,
                      PackedDot,
                      Reduce,
                      ReduceWindow,
                      Sort,
)
from .control import Composite, Const, Fusion, Get, If, MakeTuple, Param, Scan, While
from .scalar import SCALARS
from .shape import (
                      Broadcast,
                      Concat,
                      GatherND,
                      Iota,
                      Pad,
                      Reshape,
                      ScatterAlong,
                      ScatterND,
                      SizeOf,
                      Slice,
                      Take,
                      TakeAlong,
                      Transpose,
                      UpdateSlice,
)
from .weight_only import WeightOnlyDot
from .winograd import WinogradConv

# name in text -> class; the scalar functions are spelled by their own names
OPS: dict[str, type[Op]] = {op.name: op for op in (
    # form
    Param, Const, MakeTuple, Get, Composite, Fusion, If, While, Scan,
    # movement
    Broadcast, Reshape, Transpose, Slice, UpdateSlice, Concat, Pad, Iota, SizeOf,
    Take, TakeAlong, GatherND, ScatterND, ScatterAlong,
    # computation
    Cast, Bitcast, Reduce, ArgReduce, Cumulative, Sort, ArgSort, Dot, Conv, ReduceWindow,
    # as layout passes make them
    PackedDot, PackedConv, WinogradConv, WeightOnlyDot,
)}
SPELLINGS: dict[str, type[Op]] = {**OPS, **dict.fromkeys(SCALARS, Elementwise)}
ALL_OPS: tuple[type[Op], ...] = (*OPS.values(), Elementwise)
