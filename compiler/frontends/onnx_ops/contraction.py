"""ONNX operators that contract axes: MatMul, Gemm, Einsum."""

from __future__ import annotations

from ...ir.graph import Node
from ...ir.ops.compute import Dot
from ...ir.types import DType
from ...library import einsum as sum_products
from ...library import matmul as multiply
from .context import Context, Operators


def matmul(c: Context, a: Node, b: Node) -> Node:
    return matmul_into(c, a, b, None)


def matmul_into(c: Context, a: Node, b: Node, result: DType | None) -> Node:
    """NumPy's matmul, of narrow integers into `result`; contracted sizes that are not proved equal are checked at run time."""
    if a.rank == 0 or b.rank == 0:
        c.fail(f"needs operands of rank 1 or more, found {a.type} and {b.type}")
    place = max(b.rank - 2, 0)
    b = c.refine(b, [a.shape[-1] if axis == place else n for axis, n in enumerate(b.shape)])
    if a.rank > 2 and b.rank > 2:
        batch = c.broadcast_shape(a.shape[:-2], b.shape[:-2])
        a, b = (c.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    return multiply(c.b, a, b, result)


def gemm(c: Context, a: Node, b: Node, addend: Node | None = None, *, alpha: float = 1.0, beta: float = 1.0,
         transA: int = 0, transB: int = 0, broadcast: int = 0) -> Node:
    """alpha a b + beta c."""
    if a.rank != 2 or b.rank != 2:
        c.fail(f"needs two matrices, found {a.type} and {b.type}")
    left, right = (0 if transA else 1), (1 if transB else 0)
    b = c.refine(b, [a.shape[left] if axis == right else n for axis, n in enumerate(b.shape)])
    product = c.b.add(Dot((left,), (right,)), a, b)
    if alpha != 1.0:
        product = c.apply("mul", product, c.like(alpha, product))
    if addend is None or beta == 0.0:
        return product
    if beta != 1.0:
        addend = c.apply("mul", addend, c.like(beta, addend))
    return c.apply("add", product, c.broadcast_to(addend, product.shape))


def einsum(c: Context, *inputs: Node, equation: str) -> Node:
    return sum_products(c.b, equation, *inputs)


OPS: Operators = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
