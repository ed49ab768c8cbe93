"""Packing: against brute force on small problems, on problems built from known packings, and the command for files."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.packing import cut
from tilewright.cli import run
from tilewright.ir.errors import ArgumentError
from tilewright.lowering.memory import Storage, assign_offsets
from tilewright.packing import Item, Packing, fault_of, pack, pack_least
from tilewright.packing.files import read_packing


def random_items(generator: random.Random, count: int, alignments: Sequence[int] = (1,)) -> list[Item]:
    begins = [generator.randrange(6) for _ in range(count)]
    return [Item(begin, begin + generator.randint(1, 4), generator.randint(1, 5), generator.choice(alignments)) for begin in begins]


def least_height(items: Sequence[Item]) -> int:
    """By brute force: in some order of placing, with each item as low as those before it allow, every least packing is met."""
    least = sum(item.size + item.alignment for item in items)

    def place(placed: list[tuple[Item, int]], left: Sequence[Item], height: int) -> None:
        nonlocal least
        if height >= least or not left:
            least = min(least, height)
            return
        for number, item in enumerate(left):
            below = [offset + other.size for other, offset in placed if other.lower < item.upper and item.lower < other.upper]
            offset = -(-max(below, default=0) // item.alignment) * item.alignment
            place([*placed, (item, offset)], [*left[:number], *left[number + 1:]], max(height, offset + item.size))

    place([], items, 0)
    return least


def alive_at_most(items: Sequence[Item]) -> int:
    return max(sum(item.size for item in items if item.lower <= moment.lower < item.upper) for moment in items)


# Never more than 9 bytes are alive, yet 9 are not enough: the smallest such problem that random search met.
HARD = [Item(5, 7, 4), Item(0, 3, 4), Item(2, 5, 3), Item(4, 6, 2), Item(5, 10, 1), Item(6, 8, 3), Item(2, 6, 2), Item(0, 1, 4)]


@pytest.mark.parametrize("alignments", [(1,), (4,), (1, 2, 3), (1, 8)], ids=str)
def test_agrees_with_brute_force(alignments: tuple[int, ...]) -> None:
    generator = random.Random(str(alignments))
    for _ in range(60):
        items = random_items(generator, generator.randint(1, 6), alignments)
        least = least_height(items)
        found = pack(items, least)
        assert found.verdict == "packed" and not fault_of(items, found.offsets, least), items
        assert found.bound <= found.height <= least
        if least > 1:
            assert pack(items, least - 1).verdict == "impossible", items
        best = pack_least(items)
        assert best.proven and best.height == best.bound == least and not fault_of(items, best.offsets, least), items


@pytest.mark.parametrize("seed", range(6))
def test_packs_what_was_cut_from_a_rectangle(seed: int) -> None:
    """There is a packing without any gap; one byte less is impossible."""
    items = cut(random.Random(seed), 1000, 1000, 18)
    found = pack(items, 1000, nodes=2_000_000)
    assert found.verdict == "packed" and not fault_of(items, found.offsets, 1000)
    refused = pack(items, 999)
    assert (refused.verdict, refused.bound, refused.nodes) == ("impossible", 1000, 0)


def test_proves_what_no_moment_shows() -> None:
    alive = alive_at_most(HARD)
    found = pack(HARD, alive)
    assert found.verdict == "impossible" and found.bound == alive + 1 and found.nodes > 0 and found.proven
    assert pack_least(HARD).height == pack_least(HARD).bound == least_height(HARD) == alive + 1


def test_parts_that_do_not_meet() -> None:
    """Time is divided where nothing is alive; an impossible part decides, whichever it is."""
    alive = alive_at_most(HARD)
    later = [Item(item.lower + 100, item.upper + 100, item.size) for item in cut(random.Random(1), 10, alive, 8)]
    for items in ([*HARD, *later], [*later, *HARD]):
        assert pack(items, alive).verdict == "impossible"
        assert pack(items, alive + 1).verdict == "packed"


def test_same_input_same_offsets() -> None:
    items = cut(random.Random(3), 500, 500, 30)
    first = pack(items, 500, nodes=3000)
    assert all(pack(items, 500, nodes=3000) == first for _ in range(3))
    assert pack_least(items, nodes=3000) == pack_least(items, nodes=3000)


def test_like_items_and_extremes() -> None:
    assert pack([], 1) == Packing("packed", (), 0, 0, 0)
    assert pack_least([]).height == 0
    assert pack([Item(-5, 2**59, 2**59)], 2**59).offsets == (0,)
    assert pack([Item(0, 1, 1)] * 50, 49).verdict == "impossible"
    assert sorted(pack([Item(0, 1, 2)] * 50, 100).offsets) == list(range(0, 100, 2))
    chain = [Item(i, i + 2, 1 + i % 3) for i in range(3000)]
    best = pack_least(chain, nodes=1000)  # the search goes as deep as there are items
    assert best.bound == 5 and not fault_of(chain, best.offsets, best.height)


def test_limit_of_zero_takes_what_is_instant() -> None:
    alive = alive_at_most(HARD)
    assert pack(HARD, 2 * alive, seconds=0).verdict == "packed"
    assert pack(HARD, alive, seconds=0).verdict == "unknown"
    assert pack(HARD, alive - 1, seconds=0).verdict == "impossible"  # what a moment shows is instant
    quick = pack_least(HARD, seconds=0)
    assert quick.nodes == 0 and not fault_of(HARD, quick.offsets, quick.height)


def test_threads_search_at_once() -> None:
    items = cut(random.Random(5), 300, 300, 30)
    alone, found = pack(items, 300, nodes=20_000), []
    threads = [threading.Thread(target=lambda: found.append(pack(items, 300, nodes=20_000))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 3


@pytest.mark.parametrize(("items", "capacity", "text"), [
    ([Item(0, 1, 0)], 8, "item 0: size is 0, expected 1"),
    ([Item(0, 1, 1), Item(0, 1, -4)], 8, "item 1: size is -4"),
    ([Item(3, 3, 1)], 8, "item 0: it is alive from 3 to 3, expected upper > lower"),
    ([Item(0, 1, 1, 0)], 8, "item 0: alignment is 0"),
    ([Item(0, 1, 2.5)], 8, "item 0: size is 2.5, expected a whole number"),
    ([Item(0, 1, 2**61)], 8, "item 0: size is"),
    ([Item(0, 1, 2**59)] * 3, 8, "3 items sum to"),
    ([], 0, "capacity is 0, expected 1"),
    ([], -1, "capacity is -1"),
    ([], 2**63, "capacity is"),
])
def test_refuses(items: list[Item], capacity: int, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        pack(items, capacity)


def test_refuses_limits() -> None:
    with pytest.raises(ArgumentError, match="time limit is -1 seconds"):
        pack([], 8, seconds=-1)
    with pytest.raises(ArgumentError, match="time limit is nan"):
        pack_least([], seconds=math.nan)
    with pytest.raises(ArgumentError, match="limit is -1 nodes"):
        pack_least([], nodes=-1)


def test_checker_sees_faults() -> None:
    items = [Item(0, 2, 4, 4), Item(1, 3, 4), Item(2, 4, 4)]
    assert fault_of(items, (0, 4, 0), 8) == ""
    assert "share bytes" in fault_of(items, (0, 3, 0), 8)
    assert "share bytes" in fault_of(items, (4, 0, 1), 8)
    assert "leaves the capacity" in fault_of(items, (0, 5, 0), 8)
    assert "leaves the capacity" in fault_of(items, (0, 4, -1), 8)
    assert "multiple of 4" in fault_of(items, (2, 6, 0), 10)
    assert "2 offsets" in fault_of(items, (0, 4), 8)


# --- the arena -------------------------------------------------------------------------------------------------------------


def test_arena_is_proven_least() -> None:
    storages = [Storage(str(number), item.size * 100, item.lower, item.upper - 1) for number, item in enumerate(HARD)]
    storages.insert(2, Storage("none", 0, 0, 9))
    arena = assign_offsets(storages)
    units = [Item(storage.first, storage.last + 1, -(-int(storage.size) // 64) * 64, 64) for storage in storages if storage.size]
    assert not fault_of(units, [int(storage.offset) for storage in storages if storage.size], int(arena.size))
    assert arena.size == arena.bound == least_height(units)


# --- files -------------------------------------------------------------------------------------------------------------------


PROBLEM = "id,lower,upper,size,alignment,hint\na,0,3,4,,-1\n\nb,3,9,4,4,-1\nc, 0,9,4,1,-1\n"


def test_file_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(PROBLEM)
    assert run(["schedule", "--pack", str(source), "--capacity", "8", "-o", str(output)]) == 0
    assert "3 items packed into 8 of 8 bytes; no packing takes less than 8" in capsys.readouterr().out
    lines = output.read_text().splitlines()
    assert lines[0] == "id,lower,upper,size,alignment,hint,offset" and [line.split(",")[0] for line in lines[1:]] == ["a", "b", "c"]
    offsets = [int(line.rsplit(",", 1)[1]) for line in lines[1:]]
    assert not fault_of(read_packing(source).items, offsets, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]
    assert run(["schedule", "--pack", str(output), "--capacity", "8"]) == 0
    assert capsys.readouterr().out == output.read_text()  # a column `offset` is replaced


def test_hints_are_taken_where_they_are_a_packing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.csv"
    source.write_text("size,upper,lower,id,hint\n4,9,0,a,12\n4,9,0,b,3\n")
    assert run(["schedule", "--pack", str(source), "--capacity", "16"]) == 0
    assert [line.split(",")[-1] for line in capsys.readouterr().out.splitlines()] == ["offset", "12", "3"]
    assert run(["schedule", "--pack", str(source), "--capacity", "15"]) == 0
    assert sorted(line.split(",")[-1] for line in capsys.readouterr().out.splitlines()) == ["0", "4", "offset"]


@pytest.mark.parametrize(("text", "problem"), [
    ("", "has no column 'id', found nothing"),
    ("id,lower,upper\n1,2,3\n", "has no column 'size'"),
    ("id,lower,upper,size,size\n", "has the column 'size' twice"),
    ("id,lower,upper,size,gaps\n", "has a column 'gaps'"),
    ("id,lower,upper,size\n1,2,3\n", ":2: 3 columns, expected 4"),
    ("id,lower,upper,size\n1,2,3,x\n", ":2: size is 'x', expected a whole number"),
    ("id,lower,upper,size\n1,2,3,0\n", ":2: size is '0'"),
    ("id,lower,upper,size\n1,3,3,1\n", ":2: lower is 3 and upper is 3, expected upper > lower"),
    ("id,lower,upper,size\n1,2,3," + "9" * 5000 + "\n", ":2: size is"),
    ("id,lower,upper,size\na,0,2,5\nb,1,3,5\n", "no packing exists: at 1 items of 10 bytes are alive together, but the capacity is 8"),
    ("\xff\xfe", "is no text"),
])
def test_file_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(text.encode("latin-1"))
    assert run(["schedule", "--pack", str(source), "--capacity", "8", "-o", str(output)]) == 1
    assert problem in capsys.readouterr().err
    assert not output.exists()


def test_command_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.csv"
    source.write_text(PROBLEM)
    for arguments, problem in (
        (["--pack", str(source)], "--capacity SIZE is missing"),
        (["--pack", str(source), "--capacity", "0"], "expected 1 to"),
        (["--pack", str(source), "--capacity", "x"], "expected bytes"),
        (["--pack", str(source), "--capacity", "8", "--alignment", "4"], "--alignment is for scheduling a model"),
        (["model.onnx", "--pack", str(source), "--capacity", "8"], "MODEL is for scheduling a model"),
        (["model.onnx", "--scratchpad", "8", "--capacity", "8"], "--capacity and --output go with --pack"),
        ([], "MODEL is missing"),
        (["model.onnx"], "--scratchpad SIZE is missing"),
    ):
        assert run(["schedule", *arguments]) == 2
        assert problem in capsys.readouterr().err
    assert run(["schedule", "--pack", str(tmp_path / "none.csv"), "--capacity", "8"]) == 1
    assert "none.csv: No such file" in capsys.readouterr().err
