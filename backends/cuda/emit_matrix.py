"""Matrix instructions: fragments, the products that are added to them, and loops over their elements, as CUDA C++.

A fragment [warps, m, n] is m * n / 32 registers of each lane: tiles of 16 x 8 in C order, of each the four accumulators that the PTX
ISA gives a lane. Operands lie in shared memory by rows, the left one [rows, steps], the right one [steps, columns], and
come by `ldmatrix`, whose rows begin at multiples of 16 bytes: rows of shared memory are padded by whoever allocates them, so that
eight of them below one another meet all banks. Products of four warps (wgmma) have a left operand in rows of 128 bytes, whose pieces of 16
are exchanged instead (`tw_swizzled`): wherever a kernel touches such a buffer, its index goes through that. Their right operand lies
in squares of 128 bytes. Of tf32 they have the left operand in registers, in which it is rounded.

A right operand of bytes lies in words of four steps, which lanes read as they are. Where it lies in rows, `ldmatrix` transposes pairs of
bytes, which are two columns: bytes of two such words are those of one column, and two tiles of 8 columns have the even and the odd ones
of 16. So the sums lie otherwise in such a fragment, a lane having four columns that are neighbours. One of codes lies in words of
32 / bits steps: the four steps that a register takes lie at one place of a word's bytes, so a shift, a mask and a subtraction byte by
byte make it.

Operands of float32 are rounded to tf32 in registers. `ldmatrix` moves 8 rows of 16 bytes whatever they hold: of four elements each it
gives a lane the one that the instruction wants of it. It can not transpose them, so a right operand is read element by element: four steps
of 8 columns, which rows that are 8 elements longer than whole rows of banks keep apart.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from tilewright.ir.dims import DimLike, Symbol, divides, size_of
from tilewright.ir.errors import InternalError
from tilewright.ir.loop import Buffer
from tilewright.ir.loop_gpu import GROUP_ROWS, PIECE_BYTES
from tilewright.ir.loop_proofs import linear_factor
from tilewright.ir.types import BF16, F16, F32, I8, I32, U8, DType, dtype_named

TILE_ROWS, TILE_COLUMNS, LANES = 16, 8, 32
# what the text of a product names by itself, so that a kernel's own names may not hide it
RESERVED = frozenset(("lane", "step", "down", "across", "place", "from_left", "from_right", "left_words", "right_words",
                      "filled", "emptied", "stage", "phase", "under_way", "code_shift", "pairs", "word"))
PRODUCTS: dict[DType, tuple[str, int]] = {
    F16: ("tw_mma_m16n8k16_f16", 16), BF16: ("tw_mma_m16n8k16_bf16", 16), F32: ("tw_mma_m16n8k8_tf32", 8), U8: ("tw_mma_m16n8k32_u8s8", 32),
    I8: ("tw_mma_m16n8k32_s8", 32), dtype_named("f8e4m3fn"): ("tw_mma_m16n8k32_e4m3", 32),
    dtype_named("f8e5m2"): ("tw_mma_m16n8k32_e5m2", 32)}  # and steps

HALF_OF_CODES = "tw_mma_m16n8k16_s8", 16  # for groups of these that the other one does not divide
GROUPED: dict[DType, str] = {F16: "k16_f16", BF16: "k16_bf16", U8: "k32_u8s8", I8: "k32_s8",  # products of four warps
                             F32: "k8_tf32", dtype_named("f8e4m3fn"): "k32_e4m3", dtype_named("f8e5m2"): "k32_e5m2"}


class MatrixPart(Struct, frozen=True):
    """Part of a matrix in shared memory: its name in C++, the first element's row and column, elements between rows."""

    name: str
    row: str
    column: str
    distance: int
    bytes: int

    def place(self, row: str, column: str = "") -> str:
        """The element so far down and across from the first one; nothing: not at all."""
        down, across = ([part for part in parts if part not in ("", "0")] for parts in ((self.row, row), (self.column, column)))
        rows = [f"({' + '.join(down)}) * {self.distance}"] if len(down) > 1 or down and not down[0].isidentifier() else \
            [f"{down[0]} * {self.distance}"] if down else []
        return " + ".join([*rows, *across]) or "0"


def fragment_registers(fragment: Buffer) -> int:
    """Registers of a lane."""
    _, rows, columns = fragment.shape
    if not isinstance(rows, int) or not isinstance(columns, int) or rows % TILE_ROWS or columns % (2 * TILE_COLUMNS):
        raise InternalError(f"cuda: fragment %{fragment.name} of {rows} x {columns}, expected multiples of 16 x 16")
    if fragment.dtype not in (F32, I32):
        raise InternalError(f"cuda: fragment %{fragment.name} of {fragment.dtype}, expected f32 or i32")
    return rows * columns // LANES


def emit_products(fragment: Buffer, name: str, left: MatrixPart, right: MatrixPart, dtype: DType, depth: int, bits: int = 0,
                  zero: int = 0, tf32: str = "") -> list[str]:
    """`name` plus the product of two parts, `depth` steps long. `bits`: of codes less `zero`, which words on the right hold (0: none).
    `tf32`: operands of float32 that are rounded to that."""
    if dtype not in PRODUCTS or (tf32 != "") != (dtype == F32):
        raise InternalError(f"cuda: no matrix instruction takes {dtype}")
    function, steps = PRODUCTS[dtype] if not bits or depth % PRODUCTS[dtype][1] == 0 else HALF_OF_CODES
    _, rows, columns = fragment.shape
    assert isinstance(rows, int) and isinstance(columns, int)
    down, across = rows // TILE_ROWS, columns // TILE_COLUMNS
    aligned = 16 // dtype.bytes
    if depth % steps or left.distance % aligned or dtype.bytes == right.bytes and right.distance % aligned:
        raise InternalError(f"cuda: a product {depth} deep of rows {left.distance} and {right.distance} elements apart")
    in_rows = dtype.bytes == 1 and right.bytes == 1
    words = steps * dtype.bytes // 16  # of a column that an instruction takes
    of_column = f"2 * (place % {across})" if words == 2 else f"place % {across}"
    if in_rows:
        first_right = right.place("lane")
    elif dtype.bytes == 2:
        first_right = right.place("lane % 16", "lane / 16 * 8")
    else:  # lanes take four neighbouring steps each, of 16 in order: the word that has them
        first_right = right.place({0: "lane % 4", 4: "lane % 4 / 2", 2: ""}[bits], "lane / 4")
    return [
        "{",
        "  const int lane = threadIdx.x % 32;",
        f"  const int from_left = {left.place('lane % 16', f'lane / 16 * {aligned}' if words == 2 else '')};",
        f"  const int from_right = {first_right};",
        *([f"  const int code_shift = lane % {8 // bits} * {bits};"] if bits else []),
        "  #pragma unroll",
        f"  for (int step = 0; step < {depth}; step += {steps}) {{",
        f"    unsigned left_words[{down}][{2 * words}], right_words[{words * across}];",
        "    #pragma unroll",
        f"    for (int down = 0; down < {down}; ++down)" + " {" * (tf32 != ""),
        f"      tw_load_matrix_x{2 * words}(left_words[down], &{left.name}[from_left + down * {TILE_ROWS * left.distance} + step]);",
        *([*_rounded("left_words[down]", "      "), "    }"] if tf32 else ()),
        *(_decoded_words(right, across, bits, zero, words) if bits else _words_of_rows(right, across) if in_rows
          else _right_words(right, across, dtype, tf32 == "both")),
        "    #pragma unroll",
        f"    for (int place = 0; place < {down * across}; ++place)",
        f"      {function}(&{name}[4 * place], left_words[place / {across}], &right_words[{of_column}]);",
        "  }",
        "}",
    ]


def first_row(row: DimLike, warp: Symbol) -> DimLike:
    """The part of a warp's first row that all warps of a block have in common, where the rest is 16 rows a warp."""
    first = row - size_of(warp) * GROUP_ROWS
    if linear_factor(row, warp) != GROUP_ROWS or not divides(8, first):
        raise InternalError(f"cuda: a product of four warps of rows from {row} on, expected {GROUP_ROWS} rows a warp")
    return first


def emit_group_products(fragment: Buffer, name: str, left: MatrixPart, right: MatrixPart, dtype: DType, depth: int) -> list[str]:
    """`name` plus the product of two parts, `depth` steps long, by each four warps; of tf32 it has been added, else it is under way
    afterwards. `left.row`: that of the block's first warp."""
    columns, packed = fragment.shape[2], 4 if dtype.bytes == 1 else 1  # steps of an element on the right
    steps = 2 * PIECE_BYTES // dtype.bytes
    row = f"({left.row} + threadIdx.x / {4 * LANES} * {4 * GROUP_ROWS}) * {left.distance} + step"
    step, distance = f"({right.row} + step{f' / {packed}' if packed > 1 else ''}) * {columns}", PIECE_BYTES * right.distance
    from_left = [f"  const unsigned long long from_left = tw_wgmma_left(&{left.name}[{row}]);"] if dtype != F32 else []
    operand = f"left_words[step / {steps}]" if dtype == F32 else "from_left"
    products = [
        "tw_wgmma_fence();",
        "#pragma unroll",
        f"for (int step = 0; step < {depth}; step += {steps}) {{",
        *from_left,
        f"  const unsigned long long from_right = tw_wgmma_right(&{right.name}[{step}], {distance});",
        f"  tw_wgmma_m64n{columns}{GROUPED[dtype]}({name}, {operand}, from_right, 1);",
        "}",
        "tw_wgmma_commit();",
    ]
    if dtype != F32:
        return products
    row, column = f"{left.row} + threadIdx.x / {LANES} * {GROUP_ROWS} + threadIdx.x % 16", f"step + threadIdx.x % {LANES} / 16 * 4"
    return [
        "{",
        f"  unsigned left_words[{depth // steps}][4];",
        "  #pragma unroll",
        f"  for (int step = 0; step < {depth}; step += {steps}) {{",
        f"    tw_load_matrix_x4(left_words[step / {steps}], &{left.name}[tw_swizzled({row}, {column}, 4)]);",
        *_rounded(f"left_words[step / {steps}]", "    "),
        "  }",
        *(f"  {line}" for line in products),
        "  tw_wgmma_wait(0);  // which read the words until then",
        "  __syncwarp();  // one lane says for all that they have read their rows",
        "}",
    ]


def _rounded(words: str, indent: str) -> list[str]:
    """Rounds four words of a left operand."""
    return [f"{indent}#pragma unroll",
            f"{indent}for (int word = 0; word < 4; ++word)",
            f"{indent}  {words}[word] = tw_to_tf32(tw_float_from_bits((int){words}[word]));"]


def _right_words(right: MatrixPart, across: int, dtype: DType, rounds: bool) -> list[str]:
    """Loads what a lane has of the right operand: of 16 bits as matrices that are transposed, of bytes as the words that they are, of
    float32 one by one, which it `rounds` or not."""
    if dtype.bytes == 2:
        place = f"&{right.name}[from_right + step * {right.distance} + across * 8]"
        return ["    #pragma unroll",
                f"    for (int across = 0; across < {across}; across += 2)",
                f"      tw_load_matrix_x4_transposed(&right_words[2 * across], {place});"]
    row = f"({'step' if dtype == F32 else 'step / 4'} + across % 2 * 4)"
    word = f"{right.name}[from_right + {row} * {right.distance} + across / 2 * 8]"
    if dtype == F32:
        word = f"tw_to_tf32({word})" if rounds else f"(unsigned)tw_bits_of({word})"
    return ["    #pragma unroll",
            f"    for (int across = 0; across < {2 * across}; ++across)",
            f"      right_words[across] = {word};"]


def _words_of_rows(right: MatrixPart, across: int) -> list[str]:
    """Loads what a lane has of bytes that lie in rows, the even columns of 16 and the odd ones."""
    words = [f"right_words[2 * across + {i}] = tw_permute_bytes(pairs[{i % 2 * 2}], pairs[{i % 2 * 2 + 1}], {places});"
             for i, places in enumerate(("0x6420", "0x6420", "0x7531", "0x7531"))]
    return ["    #pragma unroll",
            f"    for (int across = 0; across < {across}; across += 2) {{",
            "      unsigned pairs[4];  // of columns, of two steps",
            f"      tw_load_matrix_x4_transposed(pairs, &{right.name}[from_right + step * {right.distance} + across * 8]);",
            *(f"      {word}" for word in words),
            "    }"]


def _decoded_words(right: MatrixPart, across: int, bits: int, zero: int, words: int) -> list[str]:
    """Loads what a lane has of codes, so many words of a column, four codes in each as signed bytes less `zero`. No sum of bytes reaches
    256, so none carries into the next byte: code + 128 - zero, whose highest bit is then turned over, is code - zero."""
    of_word, mask = 32 // bits, (1 << bits) - 1
    word = f"step / {of_word}" + " + across % 2" * (words == 2) + (f" * {16 // of_word}" if of_word < 16 and words == 2 else "")
    column = "across / 2 * 8" if words == 2 else "across * 8"
    codes = f"(unsigned){right.name}[from_right + ({word}) * {right.distance} + {column}] >> code_shift & {mask * 0x01010101:#010x}u"
    value = f"(({codes}) + {(128 - zero) * 0x01010101:#010x}u) ^ 0x80808080u" if zero else codes
    less = f" less {zero}" if zero else ""
    return ["    #pragma unroll",
            f"    for (int across = 0; across < {words * across}; ++across)  // four codes{less}, as signed bytes",
            f"      right_words[across] = {value};"]


def emit_elements(columns: int, registers: int, register: str, row: str, column: str, body: Callable[[], None], emit: Callable[[str], None],
                  indent: Callable[[int], None], in_pairs: bool, interleaved: bool) -> None:
    """A loop over a lane's registers of fragments `columns` wide; `row` and `column` are names of the place of an element, or of a pair of
    neighbours, which a lane has in neighbouring registers, or four apart where columns are interleaved."""
    tiles, step = columns // TILE_COLUMNS, "threadIdx.x % 4"
    emit("#pragma unroll")
    if in_pairs and interleaved:
        index, down, across = f"{register}_pair", f"{register}_pair / {2 * tiles}", f"{{0}} / 4 % {tiles // 2} * 8 + {step} * 2 + {{0}} % 2"
        emit(f"for (int {index} = 0; {index} < {registers // 2}; ++{index}) {{")
    else:
        index, down = register, f"{register} / {4 * tiles}"
        across = (f"{{0}} / 8 % {tiles // 2} * 16 + {step} * 4 + {{0}} % 2 * 2 + {{0}} / 4 % 2" if interleaved
                  else f"{{0}} / 4 % {tiles} * 4 + {step}" if in_pairs else f"{{0}} / 4 % {tiles} * 8 + {step} * 2 + {{0}} % 2")
        emit(f"for (int {index} = 0; {index} < {registers}; {f'{index} += 2' if in_pairs else f'++{index}'}) {{")
    indent(1)
    if in_pairs and interleaved:
        emit(f"const int {register} = {index} / 4 * 8 + {index} % 4;")
    emit(f"const int {row} = {down} * 16 + {index} / 2 % 2 * 8 + threadIdx.x % 32 / 4;")
    emit(f"const int {column} = {across.format(index)};")
    body()
    indent(-1)
    emit("}")
