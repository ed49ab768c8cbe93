"""ONNX recurrent operators: RNN, GRU, LSTM, as a `scan` over time for each direction.

The products with the input are taken out of the loop, over all steps at once. With sequence lengths a state stands
still outside its sequence and the outputs there are 0; run backwards this starts at the end of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from ...ir.graph import Builder, Graph, Node
from ...ir.ops.compute import Dot
from ...ir.ops.control import Param, Scan
from ...ir.ops.shape import Concat, Iota
from ...ir.types import I64, TensorType
from ...library import (
    apply,
    elu,
    expand,
    hard_sigmoid,
    leaky_relu,
    like,
    results_of,
    scalar,
    slice_axis,
    softplus,
    softsign,
    squeeze,
    transpose,
)
from .context import Context, Operators

Activation = Callable[[Builder, Node], Node]
# name -> how to build it from alpha and beta, with their defaults
ACTIVATIONS: dict[str, tuple[float, float, Callable[[Builder, Node, float, float], Node]]] = {
    "affine": (1.0, 0.0, lambda b, x, alpha, beta: apply(b, "add", apply(b, "mul", x, like(b, alpha, x)), like(b, beta, x))),
    "elu": (1.0, 0.0, lambda b, x, alpha, beta: elu(b, x, alpha)),
    "hardsigmoid": (0.2, 0.5, lambda b, x, alpha, beta: hard_sigmoid(b, x, alpha, beta)),
    "leakyrelu": (0.01, 0.0, lambda b, x, alpha, beta: leaky_relu(b, x, alpha)),
    "relu": (0.0, 0.0, lambda b, x, alpha, beta: apply(b, "max", x, like(b, 0, x))),
    "scaledtanh": (1.0, 1.0, lambda b, x, alpha, beta: apply(
        b, "mul", scalar(b, "tanh", apply(b, "mul", x, like(b, beta, x))), like(b, alpha, x))),
    "sigmoid": (0.0, 0.0, lambda b, x, alpha, beta: scalar(b, "sigmoid", x)),
    "softplus": (0.0, 0.0, lambda b, x, alpha, beta: softplus(b, x)),
    "softsign": (0.0, 0.0, lambda b, x, alpha, beta: softsign(b, x)),
    "tanh": (0.0, 0.0, lambda b, x, alpha, beta: scalar(b, "tanh", x)),
    "thresholdedrelu": (1.0, 0.0, lambda b, x, alpha, beta: apply(
        b, "select", apply(b, "ge", x, like(b, alpha, x)), x, like(b, 0, x))),
}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class Cell(Struct, frozen=True):
    """One direction at work inside the loop: weights are nodes of the loop's body."""

    b: Builder
    activations: Sequence[Activation]
    hidden: int
    recurrent: Node                 # [gates * hidden, hidden]
    recurrent_bias: Node | None     # [gates * hidden], where it must stay inside the loop (GRU)
    peepholes: Node | None
    clip: float | None
    input_forget: bool
    linear_before_reset: bool

    def gate(self, x: Node, place: int) -> Node:
        """The place-th block of `hidden` columns."""
        return slice_axis(self.b, x, x.rank - 1, place * self.hidden, self.hidden)

    def product(self, h: Node, rows: Node) -> Node:
        return self.b.add(Dot((1,), (1,)), h, rows)

    def activate(self, place: int, x: Node) -> Node:
        if self.clip is not None:
            x = apply(self.b, "min", apply(self.b, "max", x, like(self.b, -self.clip, x)), like(self.b, self.clip, x))
        return self.activations[place](self.b, x)

    def peep(self, x: Node, place: int, state: Node) -> Node:
        if self.peepholes is None:
            return x
        return apply(self.b, "add", x, apply(self.b, "mul", self.gate(self.peepholes, place), state))


Step = Callable[[Cell, Node, Sequence[Node]], tuple[Node, ...]]


def _rnn_step(cell: Cell, x: Node, states: Sequence[Node]) -> tuple[Node, ...]:
    h, = states
    return (cell.activate(0, scalar(cell.b, "add", x, cell.product(h, cell.recurrent))),)


def _lstm_step(cell: Cell, x: Node, states: Sequence[Node]) -> tuple[Node, ...]:
    """Gates in ONNX's order: input, output, forget, cell."""
    b = cell.b
    h, memory = states
    total = scalar(b, "add", x, cell.product(h, cell.recurrent))
    let_in = cell.activate(0, cell.peep(cell.gate(total, 0), 0, memory))
    if cell.input_forget:
        keep = apply(b, "sub", like(b, 1, let_in), let_in)
    else:
        keep = cell.activate(0, cell.peep(cell.gate(total, 2), 2, memory))
    fresh = cell.activate(1, cell.gate(total, 3))
    memory = scalar(b, "add", scalar(b, "mul", keep, memory), scalar(b, "mul", let_in, fresh))
    let_out = cell.activate(0, cell.peep(cell.gate(total, 1), 1, memory))
    return scalar(b, "mul", let_out, cell.activations[2](b, memory)), memory


def _gru_step(cell: Cell, x: Node, states: Sequence[Node]) -> tuple[Node, ...]:
    """Gates in ONNX's order: update, reset, hidden."""
    b, n = cell.b, cell.hidden
    h, = states
    rows = [slice_axis(b, cell.recurrent, 0, place * n, n) for place in range(3)]
    biases = [None if cell.recurrent_bias is None else cell.gate(cell.recurrent_bias, place) for place in range(3)]

    def inner(left: Node, place: int) -> Node:
        value = cell.product(left, rows[place])
        bias = biases[place]
        return value if bias is None else apply(b, "add", value, bias)

    update = cell.activate(0, scalar(b, "add", cell.gate(x, 0), inner(h, 0)))
    reset = cell.activate(0, scalar(b, "add", cell.gate(x, 1), inner(h, 1)))
    if cell.linear_before_reset:
        candidate = scalar(b, "mul", reset, inner(h, 2))
    else:
        candidate = inner(scalar(b, "mul", reset, h), 2)
    fresh = cell.activate(1, scalar(b, "add", cell.gate(x, 2), candidate))
    keep = apply(b, "sub", like(b, 1, update), update)
    return (scalar(b, "add", scalar(b, "mul", keep, fresh), scalar(b, "mul", update, h)),)


class Kind(Struct, frozen=True):
    """What tells RNN, GRU and LSTM apart."""

    gates: int
    states: int
    activations: tuple[str, ...]
    step: Step


RNN = Kind(1, 1, ("Tanh",), _rnn_step)
GRU = Kind(3, 1, ("Sigmoid", "Tanh"), _gru_step)
LSTM = Kind(4, 2, ("Sigmoid", "Tanh", "Tanh"), _lstm_step)


class Layer(Struct, frozen=True):
    """The node's inputs and attributes, all directions together."""

    kind: Kind
    x: Node                         # [time, batch, input]
    w: Node
    r: Node
    bias: Node | None
    lengths: Node | None
    initial: tuple[Node | None, ...]
    peepholes: Node | None
    hidden: int
    directions: tuple[bool, ...]
    activations: tuple[Activation, ...]
    clip: float | None
    input_forget: bool = False
    linear_before_reset: bool = False


def _activations(c: Context, kind: Kind, count: int, names: Sequence[str] | None, alphas: Sequence[float] | None,
                 betas: Sequence[float] | None) -> tuple[Activation, ...]:
    given = tuple(names) if names else kind.activations * count
    if len(given) != len(kind.activations) * count:
        c.fail(f"needs {len(kind.activations) * count} activations, found {len(given)}")
    first, second = list(alphas or ()), list(betas or ())
    found: list[Activation] = []
    for name in given:
        if name.lower() not in ACTIVATIONS:
            c.unsupported(f"the activation {name!r} is not supported; known are {', '.join(sorted(ACTIVATIONS))}")
        alpha, beta, build = ACTIVATIONS[name.lower()]
        if (alpha, beta) != (0.0, 0.0):     # only activations that have parameters take from the lists
            alpha = first.pop(0) if first else alpha
            beta = second.pop(0) if second and name.lower() in ("affine", "hardsigmoid", "scaledtanh") else beta
        found.append(_with_parameters(build, alpha, beta))
    return tuple(found)


def _with_parameters(build: Callable[[Builder, Node, float, float], Node], alpha: float, beta: float) -> Activation:
    return lambda b, x: build(b, x, alpha, beta)


def _part(c: Context, x: Node, direction: int) -> Node:
    """One direction's share of an input whose first axis counts directions."""
    return squeeze(c.b, slice_axis(c.b, x, 0, direction, 1), (0,))


def _run_direction(c: Context, layer: Layer, direction: int) -> tuple[Node, tuple[Node, ...]]:
    """All outputs [time, batch, hidden] and the last states [batch, hidden]."""
    x = layer.x
    length, batch = x.shape[0], x.shape[1]
    w, r = _part(c, layer.w, direction), _part(c, layer.r, direction)
    projected, recurrent_bias = _project(c, layer, direction, w)
    peepholes = None if layer.peepholes is None else _part(c, layer.peepholes, direction)
    operands = [r, *(p for p in (recurrent_bias, peepholes) if p is not None)]
    initial = [c.full(0, x.dtype, (batch, layer.hidden)) if s is None else
               c.refine(_part(c, s, direction), (batch, layer.hidden)) for s in layer.initial]
    scanned = [projected]
    if layer.lengths is not None:
        time = expand(c.b, c.b.add(Iota(I64, (length,), 0)), (1,))
        inside = c.apply("lt", time, expand(c.b, c.cast(layer.lengths, I64), (0,)))
        scanned.append(expand(c.b, inside, (2,)))
    body = _body(c, layer, direction, initial, scanned, operands, recurrent_bias is not None)
    op = Scan(body, len(initial), len(scanned), length, layer.directions[direction])
    *states, outputs = results_of(c.b, c.b.add(op, *initial, *scanned, *operands))
    return outputs, tuple(states)


def _project(c: Context, layer: Layer, direction: int, w: Node) -> tuple[Node, Node | None]:
    """x W^T with the biases that may leave the loop; the recurrent bias where it may not (GRU)."""
    x = c.refine(layer.x, (*layer.x.shape[:2], w.shape[1]))
    projected = c.b.add(Dot((2,), (1,)), x, w)
    if layer.bias is None:
        return projected, None
    bias = _part(c, layer.bias, direction)
    width = layer.kind.gates * layer.hidden
    ours, theirs = slice_axis(c.b, bias, 0, 0, width), slice_axis(c.b, bias, 0, width, width)
    if layer.kind is GRU:
        return c.apply("add", projected, ours), theirs
    return c.apply("add", projected, c.scalar("add", ours, theirs)), None


def _body(c: Context, layer: Layer, direction: int, initial: Sequence[Node], scanned: Sequence[Node],
          operands: Sequence[Node], has_bias: bool) -> Graph:
    b = Builder(c.b.loc)
    steps = [TensorType(s.dtype, s.shape[1:]) for s in scanned]
    types = [*(s.tensor for s in initial), *steps, *(o.tensor for o in operands)]
    params = [b.add(Param(f"x{i}", t.dtype, t.shape)) for i, t in enumerate(types)]
    states, rest = params[:len(initial)], params[len(initial):]
    x, mask = rest[0], rest[1] if len(scanned) > 1 else None
    weights = rest[len(scanned):]
    own = len(layer.kind.activations)
    cell = Cell(b, layer.activations[direction * own:(direction + 1) * own], layer.hidden, weights[0],
                weights[1] if has_bias else None, weights[-1] if layer.peepholes is not None else None, layer.clip,
                layer.input_forget, layer.linear_before_reset)
    after = layer.kind.step(cell, x, states)
    output = after[0]
    if mask is not None:
        after = tuple(apply(b, "select", mask, new, old) for new, old in zip(after, states))
        output = apply(b, "select", mask, output, like(b, 0, output))
    return Graph("step", params, (*after, output))


def _run(c: Context, layer: Layer, layout: int) -> tuple[Node | None, ...]:
    """Y [time, directions, batch, hidden] and the last states [directions, batch, hidden]; layout 1: batch first."""
    made = [_run_direction(c, layer, d) for d in range(len(layer.directions))]
    y = _joined(c, [expand(c.b, outputs, (1,)) for outputs, _ in made], 1)
    lasts = [_joined(c, [expand(c.b, states[i], (0,)) for _, states in made], 0) for i in range(layer.kind.states)]
    if layout:
        y = transpose(c.b, y, (2, 0, 1, 3))
        lasts = [transpose(c.b, s, (1, 0, 2)) for s in lasts]
    return (y, *lasts)


def _joined(c: Context, parts: Sequence[Node], axis: int) -> Node:
    return parts[0] if len(parts) == 1 else c.b.add(Concat(axis), *parts)


def run_layer(c: Context, kind: Kind, x: Node, w: Node, r: Node, bias: Node | None, lengths: Node | None,
           initial: tuple[Node | None, ...], peepholes: Node | None, *, activations: Sequence[str] | None,
           activation_alpha: Sequence[float] | None, activation_beta: Sequence[float] | None, clip: float | None,
           direction: str, hidden_size: int | None, layout: int, input_forget: int = 0,
           linear_before_reset: int = 0) -> tuple[Node | None, ...]:
    if x.rank != 3 or w.rank != 3 or r.rank != 3:
        c.fail(f"needs X, W and R of rank 3, found {x.type}, {w.type} and {r.type}")
    for what, part, rank in (("B", bias, 2), ("P", peepholes, 2), *(("an initial state", s, 3) for s in initial)):
        if part is not None and part.rank != rank:
            c.fail(f"{what} must have rank {rank}, found {part.type}")
    directions = DIRECTIONS[c.choice(direction, "direction", tuple(DIRECTIONS))]
    hidden = r.shape[2] if hidden_size is None else hidden_size
    if not isinstance(hidden, int) or w.shape[1] != kind.gates * hidden or w.shape[0] != len(directions):
        c.fail(f"W {w.type} and R {r.type} do not fit hidden_size {hidden}, direction {direction}")
    if layout:
        x = transpose(c.b, x, (1, 0, 2))
        initial = tuple(None if s is None else transpose(c.b, s, (1, 0, 2)) for s in initial)
    chosen = _activations(c, kind, len(directions), activations, activation_alpha, activation_beta)
    layer = Layer(kind, x, w, r, bias, lengths, initial, peepholes, hidden, directions, chosen, clip,
                  bool(input_forget), bool(linear_before_reset))
    return _run(c, layer, layout)


def rnn(c: Context, x: Node, w: Node, r: Node, bias: Node | None = None, sequence_lens: Node | None = None,
        initial_h: Node | None = None, *, activations: Sequence[str] | None = None,
        activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
        clip: float | None = None, direction: str = "forward", hidden_size: int | None = None, layout: int = 0,
        output_sequence: int = 0) -> tuple[Node | None, ...]:
    return run_layer(c, RNN, x, w, r, bias, sequence_lens, (initial_h,), None, activations=activations,
                  activation_alpha=activation_alpha, activation_beta=activation_beta, clip=clip, direction=direction,
                  hidden_size=hidden_size, layout=layout)


def gru(c: Context, x: Node, w: Node, r: Node, bias: Node | None = None, sequence_lens: Node | None = None,
        initial_h: Node | None = None, *, activations: Sequence[str] | None = None,
        activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
        clip: float | None = None, direction: str = "forward", hidden_size: int | None = None, layout: int = 0,
        linear_before_reset: int = 0, output_sequence: int = 0) -> tuple[Node | None, ...]:
    return run_layer(c, GRU, x, w, r, bias, sequence_lens, (initial_h,), None, activations=activations,
                  activation_alpha=activation_alpha, activation_beta=activation_beta, clip=clip, direction=direction,
                  hidden_size=hidden_size, layout=layout, linear_before_reset=linear_before_reset)


def lstm(c: Context, x: Node, w: Node, r: Node, bias: Node | None = None, sequence_lens: Node | None = None,
         initial_h: Node | None = None, initial_c: Node | None = None, peepholes: Node | None = None, *,
         activations: Sequence[str] | None = None, activation_alpha: Sequence[float] | None = None,
         activation_beta: Sequence[float] | None = None, clip: float | None = None, direction: str = "forward",
         hidden_size: int | None = None, input_forget: int = 0, layout: int = 0,
         output_sequence: int = 0) -> tuple[Node | None, ...]:
    return run_layer(c, LSTM, x, w, r, bias, sequence_lens, (initial_h, initial_c), peepholes, activations=activations,
                  activation_alpha=activation_alpha, activation_beta=activation_beta, clip=clip, direction=direction,
                  hidden_size=hidden_size, layout=layout, input_forget=input_forget)


OPS: Operators = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
