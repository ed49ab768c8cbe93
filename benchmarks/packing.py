"""Exact packing: the MiniMalloc instances, and random ones whose least capacity is known.

Each is packed into its capacity (the number in the file's name, as in A.1048576.csv), on one thread, and the offsets are checked. The
random ones are cut from a rectangle, so that there is a packing without any gap; they get harder with the number of items.

    python -m benchmarks.packing [--folder ../shared/data/minimalloc] [--seconds 60] [--random 5]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

from tilewright.packing import Item, fault_of, pack
from tilewright.packing.files import read_packing

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "minimalloc"
SIDE = 4096                       # of the rectangle that random items are cut from
COUNTS = (20, 40, 80, 160, 320)


def instances(folder: Path) -> Iterator[tuple[str, list[Item], int]]:
    for path in sorted(folder.glob("*.csv")):
        capacity = path.stem.rpartition(".")[2]
        if capacity.isdigit():
            yield path.stem, list(read_packing(path).items), int(capacity)


def cut(generator: random.Random, width: int, height: int, count: int) -> list[Item]:
    """Items that fill a rectangle without a gap: cuts through the whole of a piece, at random."""
    pieces = [(0, width, 0, height)]
    while len(pieces) < count:
        largest = max(range(len(pieces)), key=lambda k: (pieces[k][1] - pieces[k][0]) * (pieces[k][3] - pieces[k][2]))
        left, right, low, high = pieces.pop(largest)
        if generator.random() < 0.5 and right - left > 1 or high - low < 2:
            at = generator.randint(left + 1, right - 1)
            pieces += [(left, at, low, high), (at, right, low, high)]
        else:
            at = generator.randint(low + 1, high - 1)
            pieces += [(left, right, low, at), (left, right, at, high)]
    generator.shuffle(pieces)
    return [Item(left, right, high - low) for left, right, low, high in pieces]


def random_instances(each: int) -> Iterator[tuple[str, list[Item], int]]:
    for count in COUNTS:
        for seed in range(each):
            yield f"cut into {count}, seed {seed}", cut(random.Random(seed), SIDE, SIDE, count), SIDE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the CSV files are")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each")
    parser.add_argument("--random", type=int, default=5, help="random instances of each number of items")
    given = parser.parse_args()
    solved = total = 0
    for name, items, capacity in (*instances(given.folder), *random_instances(given.random)):
        began = time.thread_time()
        found = pack(items, capacity, seconds=given.seconds)
        seconds = time.thread_time() - began
        fault = fault_of(items, found.offsets, capacity) if found.verdict == "packed" else ""
        total += 1
        solved += found.verdict == "packed" and not fault
        print(f"{name:<24} {len(items):>5} items  {found.verdict:<8} {found.nodes:>10} nodes  {seconds:8.3f} s  {fault}", flush=True)
    print(f"{solved} of {total} packed")


if __name__ == "__main__":
    main()
