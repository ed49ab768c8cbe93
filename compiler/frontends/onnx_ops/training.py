"""Steps of optimizers, domain `ai.onnx.preview.training`: Adagrad, Adam, Momentum.

Each takes the learning rate, the number of steps before, and lists of equal length: tensors, their gradients, and what the optimizer
keeps beside each tensor. It gives the new tensors and the new state, list by list.

Guarantees: as the reference evaluator computes it, in the dtype of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir.graph import Node
from .context import Context, Operators

# a tensor, its gradient with that of the regularization, its state -> the new tensor and state
Step = Callable[[Node, Node, Sequence[Node]], tuple[Node, ...]]


def _each(c: Context, inputs: Sequence[Node], lists: int, norm_coefficient: float, step: Step) -> tuple[Node, ...]:
    """The step for every tensor; the results list by list."""
    if not inputs or len(inputs) % lists:
        c.fail(f"needs {lists} lists of equal length behind R and T, found {len(inputs)} inputs")
    count = len(inputs) // lists
    rows = []
    for place in range(count):
        x, gradient, *state = (inputs[place + count * number] for number in range(lists))
        for other in (gradient, *state):
            if other.dtype != x.dtype or other.rank != x.rank:
                c.fail(f"a tensor is {x.type}, its gradient or state {other.type}")
        state = [c.refine(n, x.shape) for n in state]
        regularized = c.apply("add", c.apply("mul", c.like(norm_coefficient, x), x), c.refine(gradient, x.shape))
        rows.append(step(x, regularized, state))
    return tuple(result for column in zip(*rows) for result in column)


def _scalar_of(c: Context, value: Node, x: Node) -> Node:
    return c.reshape(c.cast(value, x.dtype), ())


def adagrad(c: Context, r: Node, t: Node, *inputs: Node, decay_factor: float = 0.0, epsilon: float = 1e-6,
            norm_coefficient: float = 0.0) -> tuple[Node, ...]:
    """Duchi et al., Adaptive Subgradient Methods, 2011."""
    def step(x: Node, gradient: Node, state: Sequence[Node]) -> tuple[Node, ...]:
        slower = c.scalar("add", c.like(1, x), c.scalar("mul", _scalar_of(c, t, x), c.like(decay_factor, x)))
        rate = c.scalar("div", _scalar_of(c, r, x), slower)
        squares = c.scalar("add", state[0], c.scalar("mul", gradient, gradient))
        root = c.apply("add", c.scalar("sqrt", squares), c.like(epsilon, x))
        return c.scalar("sub", x, c.scalar("div", c.apply("mul", rate, gradient), root)), squares
    return _each(c, inputs, 3, norm_coefficient, step)


def adam(c: Context, r: Node, t: Node, *inputs: Node, alpha: float = 0.9, beta: float = 0.999, epsilon: float = 1e-6,
         norm_coefficient: float = 0.0, norm_coefficient_post: float = 0.0) -> tuple[Node, ...]:
    """Kingma and Ba, Adam, 2015. The first step is not corrected for the bias of the averages."""
    def average(weight: float, old: Node, new: Node) -> Node:
        return c.scalar("add", c.apply("mul", c.like(weight, old), old), c.apply("mul", c.like(1 - weight, old), new))

    def step(x: Node, gradient: Node, state: Sequence[Node]) -> tuple[Node, ...]:
        mean = average(alpha, state[0], gradient)
        squares = average(beta, state[1], c.scalar("mul", gradient, gradient))
        rate, steps, one = _scalar_of(c, r, x), _scalar_of(c, t, x), c.like(1, x)
        left = [c.scalar("sub", one, c.scalar("pow", c.like(weight, x), steps)) for weight in (alpha, beta)]
        corrected = c.scalar("div", c.scalar("mul", rate, c.scalar("sqrt", left[1])), left[0])
        rate = c.scalar("select", c.scalar("gt", steps, c.like(0, x)), corrected, rate)
        root = c.apply("add", c.scalar("sqrt", squares), c.like(epsilon, x))
        moved = c.scalar("sub", x, c.apply("mul", rate, c.scalar("div", mean, root)))
        return c.apply("mul", c.like(1 - norm_coefficient_post, x), moved), mean, squares
    return _each(c, inputs, 4, norm_coefficient, step)


def momentum(c: Context, r: Node, t: Node, *inputs: Node, alpha: float, beta: float, mode: str,
             norm_coefficient: float) -> tuple[Node, ...]:
    """Gradients summed up with decay; the first one counts in full. `nesterov` looks one step ahead."""
    c.choice(mode, "mode", ("standard", "nesterov"))

    def step(x: Node, gradient: Node, state: Sequence[Node]) -> tuple[Node, ...]:
        later = c.scalar("gt", _scalar_of(c, t, x), c.like(0, x))
        share = c.scalar("select", later, c.like(beta, x), c.like(1, x))
        decayed = c.apply("mul", c.like(alpha, x), state[0])
        speed = c.scalar("add", decayed, c.apply("mul", share, gradient))
        ahead = speed if mode == "standard" else c.scalar("add", gradient, c.apply("mul", c.like(alpha, x), speed))
        return c.scalar("sub", x, c.apply("mul", _scalar_of(c, r, x), ahead)), speed
    return _each(c, inputs, 3, norm_coefficient, step)


OPS: Operators = {"Adagrad": adagrad, "Adam": adam, "Momentum": momentum}
