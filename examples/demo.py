"""What `make demo` runs: a sentence-embedding model from a plain NumPy function to native code, and what it is good for.

What it does: compiles `encode` of examples/minilm.py with its 22 million published parameters, finds the sentences
nearest to some questions, times it beside plain NumPy, writes it as a C library into demo-output/, compiles a C program
against that and compares its result.

Assumes the packages of examples/requirements.txt; a C compiler for the last step, which is left out without one.
Guarantees to end with an error when any of the results differ by more than rounding.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from examples import minilm

ROOT = Path(__file__).resolve().parents[1]
LARGEST_DIFFERENCE = 1e-5  # of unit vectors, against NumPy's sums in another order

SENTENCES = (
    "To reset your password, open the account page and follow the link we mail you.",
    "Orders can be returned within thirty days of delivery.",
    "The parcel was handed to the courier this morning.",
    "Your invoice is attached as a PDF file.",
    "We accept credit cards, bank transfers and cash on delivery.",
    "The subscription renews every month until you cancel it.",
    "Our support team answers between nine and five on working days.",
    "The warranty covers faults of material for two years.",
    "Bring the dough to room temperature before you roll it out.",
    "Simmer the tomatoes with garlic and basil for half an hour.",
    "A pinch of salt makes chocolate taste sweeter.",
    "Sourdough bread needs a starter that is fed every day.",
    "Let the tea steep for three minutes in water just off the boil.",
    "Roast the vegetables until their edges turn brown.",
    "The kitten chased a ball of wool under the sofa.",
    "Dogs were bred from wolves many thousands of years ago.",
    "Swallows fly south before the first frost.",
    "An octopus has three hearts and blue blood.",
    "Bees tell each other where flowers are by dancing.",
    "The blue whale is the largest animal that ever lived.",
    "A compiler translates a program into machine code.",
    "The cache keeps recently used data close to the processor.",
    "Matrix multiplication dominates the time of most neural networks.",
    "A race condition appears only when two threads meet at the wrong moment.",
    "The garbage collector frees memory that nobody can reach any more.",
    "Unit tests failed after the last commit was merged.",
    "Vector instructions process sixteen numbers at once.",
    "The train to the coast leaves at a quarter past eight.",
    "Flights were delayed because of heavy fog.",
    "The museum is closed on Mondays.",
    "The path climbs through pine woods to a lake.",
    "Hotels near the harbour are booked out in August.",
    "The central bank raised interest rates by a quarter of a point.",
    "Shares fell after the company warned of lower profits.",
    "Inflation slowed for the third month in a row.",
    "A short walk after meals lowers blood sugar.",
    "Adults need seven to nine hours of sleep a night.",
    "The vaccine protects against four strains of influenza.",
    "Stretch slowly and stop when it hurts.",
    "The orchestra played the slow movement almost in a whisper.",
    "She learned the violin at the age of five.",
    "The goalkeeper saved a penalty in the last minute.",
)

QUESTIONS = (
    "I forgot my login credentials, what now?",
    "How can I send something back that I bought?",
    "Why does my program crash only sometimes when it runs in parallel?",
    "What should I cook for pasta sauce?",
    "Which creature is the biggest of all?",
    "Is borrowing money getting more expensive?",
)

Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]


def check_equal(what: str, expected: np.ndarray, found: np.ndarray, allowed: float) -> None:
    """Prints the largest difference; ends the demo when it is more than allowed."""
    difference = float(np.abs(expected - found).max())
    print(f"  {what}: largest difference {difference:.1e}")
    if not difference <= allowed:  # a NaN must not pass
        raise SystemExit(f"demo: {what}: expected a difference of at most {allowed:.0e}, found {difference:.1e}")


def milliseconds(call: Callable[[], object], seconds: float = 1.0) -> float:
    """The median time of a call, over `seconds` of calls after one that is not counted."""
    call()
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(times))


def show_neighbours(encode: Encode, tokenizer: minilm.Tokenizer) -> None:
    """The three nearest sentences of each question, with the cosine of the angle between them."""
    library = encode(*tokenizer(SENTENCES))
    scores = encode(*tokenizer(QUESTIONS)) @ library.T
    print(f"\nNearest of {len(SENTENCES)} sentences")
    for question, row in zip(QUESTIONS, scores, strict=True):
        print(f"  {question}")
        for index in np.argsort(-row)[:3]:
            print(f"      {row[index]:.3f}  {SENTENCES[index]}")


def show_latency(encode: Encode, plain: Encode, tokenizer: minilm.Tokenizer) -> None:
    """One question, a long text, and a batch, beside plain NumPy; the same executable for all sizes."""
    print("\nLatency, median of a second of calls")
    print(f"  {'size':>10}  {'NumPy ms':>9}  {'compiled ms':>11}  {'times':>6}")
    cases = ((QUESTIONS[:1], None), ((" ".join(SENTENCES[:10]),), 128), (SENTENCES[:8], 32))
    for sentences, length in cases:
        inputs = tokenizer(sentences, length)
        slow = milliseconds(lambda inputs=inputs: plain(*inputs))
        fast = milliseconds(lambda inputs=inputs: encode(*inputs))
        size = "x".join(map(str, inputs[0].shape))
        print(f"  {size:>10}  {slow:9.2f}  {fast:11.2f}  {slow / fast:6.2f}")


def compile_model(parameters: minilm.Parameters, threads: int):
    """The executable for every batch and sequence; prints what it is made of."""
    import tilewright as tw

    def embed(token_ids, attention_mask):
        return minilm.encode(parameters, token_ids, attention_mask)

    size = tw.spec(("batch", "sequence"), "int64")
    options = tw.Options(threads=threads, cache=False)  # the time shown is that of a compile, not of a cache
    begin = time.perf_counter()
    executable = tw.compile(embed, target="cpu", args=(size, size), options=options)
    seconds = time.perf_counter() - begin
    _, workspace = executable.plan((1, 128), (1, 128))
    print(f"\nCompiled for any batch and sequence in {seconds:.2f} s")
    print(f"  {len(executable.kernels)} kernels, {executable.code_bytes / 1e3:.0f} kB of code")
    print(f"  peak arena for 1x128 tokens, known before the run: {workspace / 1e6:.2f} MB")
    return executable


def call_from_c(executable, folder: Path, inputs: tuple[np.ndarray, np.ndarray], expected: np.ndarray) -> None:
    """Saves the library, builds examples/c/minilm.c against it, runs that, and compares."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "minilm.so"
    executable.save(library)
    print(f"\nAhead of time: {folder}/")
    for path in sorted(folder.glob("minilm.*")):
        print(f"  {path.name:16} {path.stat().st_size / 1e6:8.2f} MB")
    compiler = shutil.which("cc")
    if compiler is None:
        print("  no C compiler `cc` on the path: calling it from C is left out; install gcc or clang to see it")
        return
    program = folder / "minilm"
    source = ROOT / "examples" / "c" / "minilm.c"
    build = [compiler, "-std=c99", "-O2", "-I", str(folder), str(source), str(library)]
    build += ["-pthread", "-Wl,-rpath,$ORIGIN", "-o", str(program)]
    print("  $ " + " ".join(build))
    subprocess.run(build, check=True)
    files = [folder / name for name in ("token_ids.bin", "attention_mask.bin", "embeddings.bin")]
    for array, path in zip(inputs, files, strict=False):
        path.write_bytes(np.ascontiguousarray(array).tobytes())
    command = [str(program), *map(str, inputs[0].shape), *map(str, files)]
    print("  $ " + " ".join(command))
    subprocess.run(command, check=True)
    found = np.fromfile(files[2], np.float32).reshape(expected.shape)
    # The same object code on the same CPU, and a number of threads never changes a result: the same bits.
    check_equal("C against Python", expected, found, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=0, help="threads of a call (default: all this process may use)")
    parser.add_argument("--output", type=Path, default=ROOT / "demo-output", help="where the C library goes")
    parser.add_argument("--plain", action="store_true", help="run the NumPy function as it stands, compile nothing")
    arguments = parser.parse_args()
    parameters = minilm.load_parameters()
    tokenizer = minilm.Tokenizer()
    count = sum(parameter.size for parameter in parameters.values())
    print(f"all-MiniLM-L6-v2 as a NumPy function: {count / 1e6:.1f} million parameters")

    def plain(token_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        return minilm.encode(parameters, token_ids, attention_mask)

    if arguments.plain:
        show_neighbours(plain, tokenizer)
        return
    executable = compile_model(parameters, arguments.threads)
    inputs = tokenizer(QUESTIONS)
    expected = executable(*inputs)
    check_equal("compiled against NumPy", plain(*inputs), expected, LARGEST_DIFFERENCE)
    show_neighbours(executable, tokenizer)
    show_latency(executable, plain, tokenizer)
    call_from_c(executable, arguments.output, inputs, expected)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: {' '.join(map(str, error.cmd))} ended with code {error.returncode}; its message stands above")
