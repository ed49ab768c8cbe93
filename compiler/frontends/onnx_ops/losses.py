"""ONNX losses: negative log likelihood of classes, and cross entropy of scores.

Classes lie along axis 1. A target equal to `ignore_index` weighs nothing; another one outside the classes is an error at run
time.
"""

from __future__ import annotations

from ...ir.graph import Node
from ...ir.ops.shape import Take, TakeAlong
from ...ir.types import I64
from ...library import expand, log_softmax, mean, reduce, squeeze
from .context import Context, Operators

REDUCTIONS = ("mean", "sum", "none")


def _loss(c: Context, log_probability: Node, target: Node, weight: Node | None, ignore_index: int | None,
          reduction: str) -> Node:
    c.choice(reduction, "reduction", REDUCTIONS)
    x = log_probability
    if x.rank < 2 or target.rank != x.rank - 1:
        c.fail(f"the target {target.type} has no class for each place of {x.type}")
    target = c.refine(c.cast(target, I64), (x.shape[0], *x.shape[2:]))
    kept = None if ignore_index is None else c.apply("ne", target, c.constant(ignore_index, I64))
    if kept is not None:
        target = c.apply("select", kept, target, c.constant(0, I64))
    loss = c.scalar("neg", squeeze(c.b, c.b.add(TakeAlong(1), x, expand(c.b, target, (1,))), (1,)))
    factor = None if weight is None else c.b.add(Take(0), weight, target)
    if kept is not None:
        zero = c.like(0, x)
        loss = c.apply("select", kept, loss, zero)      # what is ignored may be infinite
        factor = c.apply("select", kept, c.like(1, x) if factor is None else factor, zero)
    if factor is not None:
        loss = c.scalar("mul", loss, factor)
    axes = tuple(range(loss.rank))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return reduce(c.b, "sum", loss, axes)
    if factor is None:
        return mean(c.b, loss, axes)
    return c.scalar("div", reduce(c.b, "sum", loss, axes), reduce(c.b, "sum", factor, axes))


def negative_log_likelihood_loss(c: Context, x: Node, target: Node, weight: Node | None = None, *,
                                 ignore_index: int | None = None, reduction: str = "mean") -> Node:
    return _loss(c, x, target, weight, ignore_index, reduction)


def softmax_cross_entropy_loss(c: Context, scores: Node, labels: Node, weights: Node | None = None, *,
                               ignore_index: int | None = None, reduction: str = "mean") -> tuple[Node, Node]:
    if scores.rank < 2:
        c.fail(f"the scores need an axis of classes, found {scores.type}")
    log_probability = log_softmax(c.b, scores, 1)
    return _loss(c, log_probability, labels, weights, ignore_index, reduction), log_probability


OPS: Operators = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood_loss, "SoftmaxCrossEntropyLoss": softmax_cross_entropy_loss,
}
