"""Networks found by architecture search, as problems to be scheduled: PNASNet-5, AmoebaNet-D, NASNet-A (large) and DARTS.

A cell takes the results of the two cells before it, brings both to its own width and size, and adds five (DARTS: four) pairs of
operations, some of which are put side by side. The tables below hold the cells after their published code: rows of (operation,
operand) twice, operand 0 being the cell before the last, 1 the last, 2 and up the rows; and what is put side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tilewright.scheduling.problem import Problem

from .networks import Net

Row = tuple[str, int, str, int]
Cell = tuple[tuple[Row, ...], tuple[int, ...]]

NASNET_NORMAL: Cell = ((("sep3", 1, "skip", 1), ("sep3", 0, "sep5", 1), ("pool", 1, "skip", 0), ("pool", 0, "pool", 0),
                        ("sep5", 0, "sep3", 0)), (0, 2, 3, 4, 5, 6))
NASNET_REDUCE: Cell = ((("sep5", 1, "sep7", 0), ("pool", 1, "sep7", 0), ("pool", 1, "sep5", 0), ("pool", 2, "skip", 3),
                        ("sep3", 2, "pool", 1)), (3, 4, 5, 6))
PNASNET: Cell = ((("sep5", 0, "pool", 0), ("sep7", 1, "pool", 1), ("sep5", 1, "sep3", 1), ("sep3", 4, "pool", 1),
                  ("sep3", 0, "skip", 1)), (2, 3, 4, 5, 6))
AMOEBANET_NORMAL: Cell = ((("conv1", 0, "pool", 0), ("skip", 0, "conv17", 1), ("conv1", 1, "conv17", 1), ("pool", 2, "skip", 2),
                           ("pool", 0, "conv1", 5)), (1, 3, 4, 6))
AMOEBANET_REDUCE: Cell = ((("pool", 1, "pool", 1), ("skip", 2, "sep3", 0), ("conv17", 2, "pool", 2), ("skip", 3, "pool", 0),
                           ("pool", 2, "conv1", 3)), (4, 5, 6))
DARTS_NORMAL: Cell = ((("sep3", 0, "sep3", 1), ("sep3", 0, "sep3", 1), ("sep3", 1, "skip", 0), ("skip", 0, "dil3", 2)), (2, 3, 4, 5))
DARTS_REDUCE: Cell = ((("pool", 0, "pool", 1), ("skip", 2, "pool", 1), ("pool", 0, "skip", 2), ("skip", 2, "pool", 1)), (2, 3, 4, 5))


def operation(net: Net, kind: str, x: int, width: int, stride: int) -> int:
    """One operation of a cell."""
    if kind == "skip":
        return net.conv_norm(net.relu(x), width, 1, stride) if stride != 1 or net.shapes[x][1] != width else x
    if kind == "pool":
        return net.pool(x, stride)
    if kind == "conv1":
        return net.conv_norm(net.relu(x), width, 1, stride)
    if kind == "conv17":
        return net.conv_norm(net.conv(net.relu(x), width, (1, 7), (1, stride)), width, (7, 1), (stride, 1))
    size = int(kind[3:])
    for pace in (stride, 1) if kind.startswith("sep") else (stride,):  # separable ones are applied twice
        channels = net.shapes[x][1]
        x = net.conv_norm(net.conv(net.relu(x), channels, size, pace, channels), width)
    return x


def add_cell(net: Net, cell: Cell, before: int, last: int, width: int, stride: int) -> int:
    values = [net.conv_norm(net.relu(before), width, 1, net.shapes[before][2] // net.shapes[last][2] or 1),
              net.conv_norm(net.relu(last), width)]
    rows, joined = cell
    for left, first, right, second in rows:
        parts = [operation(net, kind, values[operand], width, stride if operand < 2 else 1)
                 for kind, operand in ((left, first), (right, second))]
        values.append(net.add(*parts))
    return net.concat(*(values[number] for number in joined))


def searched_network(name: str, normal: Cell, reduce: Cell, width: int, stem: int, repeats: Sequence[int], item: int) -> Problem:
    """Stem, two reducing cells, then normal cells with a reducing one between two groups of them."""
    net = Net(name, item)
    before = last = net.conv_norm(net.input((1, 3, 224, 224)), stem, 3, 2)
    for scale in (4, 2):
        before, last = last, add_cell(net, reduce, before, last, width // scale, 2)
    for group, cells in enumerate(repeats):
        if group:
            before, last = last, add_cell(net, reduce, before, last, width << group, 2)
        for _ in range(cells):
            before, last = last, add_cell(net, normal, before, last, width << group, 1)
    return net.done(net.linear(net.global_pool(net.relu(last)), 1000))


def searched() -> dict[str, Callable[[int], Problem]]:
    """Name -> the network for a number of bytes an element."""
    return {
        "PNASNet-5": partial(searched_network, "PNASNet-5", PNASNET, PNASNET, 216, 96, (4, 3, 3)),
        "AmoebaNet-D": partial(searched_network, "AmoebaNet-D", AMOEBANET_NORMAL, AMOEBANET_REDUCE, 190, 64, (4, 4, 4)),
        "NASNet-A": partial(searched_network, "NASNet-A", NASNET_NORMAL, NASNET_REDUCE, 168, 96, (6, 6, 6)),
        "DARTS": partial(searched_network, "DARTS", DARTS_NORMAL, DARTS_REDUCE, 48, 48, (4, 4, 4)),
    }
