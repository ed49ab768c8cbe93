"""Recipes: what a layer may become, how ranges, scales and integers are found. Frozen records; `RECIPES` names the usual ones.

The precisions, beside "f32", which leaves a layer alone:

    i8          8-bit weights a channel, 8-bit activations whose range is known beforehand
    i8 dynamic  8-bit weights a channel, 8-bit activations a row, whose range is found at run time
    i8 outliers the same, but for columns of the input that are much larger than others, which are multiplied in float
    w8, w4, w2  weights of 8, 4, 2 bits, activations in float
    w4a8        4-bit weights in groups, activations as in "i8 dynamic"
    bf16        weights and activations rounded to bfloat16, sums and results in float32
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from ..ir.errors import ArgumentError

RANGES = ("min-max", "percentile", "mean squared error", "entropy", "best")
ROUNDINGS = ("nearest", "gptq", "gptq asymmetric", "coordinate descent")
LEAST_GROUP = 16  # weights that share a scale, which runtimes have kernels for
SMOOTHINGS = ("", "smoothquant", "logarithmic", "best")
# precision -> dtype of the weights, kind of the activations
PRECISIONS: dict[str, tuple[str, str]] = {
    "i8": ("i8", "static"), "i8 dynamic": ("i8", "dynamic"), "w8": ("i8", "float"), "w4": ("int4", "float"), "w2": ("int2", "float"),
    "w4a8": ("int4", "dynamic"), "bf16": ("bf16", "float"), "i8 outliers": ("i8", "dynamic"),
}
PRECISION_OF_OUTLIERS = "i8 outliers"


class Recipe(Struct, frozen=True):
    """How to quantize.

    precisions       what a layer may become besides "f32"; of several the budget chooses
    ranges           how the range of static activations is found; "best" takes of "min-max" and "mean squared error", for each value,
                     what loses less at the model's results. `percentile` is the share of values within, in percent
    rounding         how integers are found from weights; all but "nearest" look at the second moments of the layer's input
    group            elements along the contraction that share a scale, for weights of less than 8 bits; 0: one scale a channel.
                     Where it does not divide the contraction, the greatest divisor below it that is at least 16 serves
    symmetric        whether weights of less than 8 bits have no zero point; those of 8 bits never have one
    clip             whether scales of weights are searched for the least squared error, instead of holding the largest weight
    smoothing        factors that move the spread of activations into weights: "smoothquant", "logarithmic", or "" for none; "best" takes
                     for each value the one, of several strengths or none, that an estimate of the layers' errors favours
    multiply         whether smoothing that no neighbour takes up is a multiplication of the layer's input at run time, which is part of
                     the kernel that quantizes it; else it is left out
    strength         of "smoothquant": 0 leaves all of it in the activations, 1 moves all into the weights
    correct_bias     whether the mean error of a layer's result is added to its bias
    activations      "u8", or "i8" for symmetric ranges
    byte_bits        bits of 8-bit weights that meet 8-bit activations: 8, or 7 (within 64), so that the products of two neighbours add
                     up within 16 bits, which is what the fastest instruction of CPUs without VNNI holds; 0: what the target prefers
    """

    name: str
    precisions: tuple[str, ...]
    ranges: str = "best"
    percentile: float = 99.99
    rounding: str = "nearest"
    group: int = 64
    symmetric: bool = True
    clip: bool = True
    smoothing: str = ""
    multiply: bool = True
    strength: float = 0.5
    correct_bias: bool = True
    activations: str = "u8"
    byte_bits: int = 0

    def __post_init__(self) -> None:
        for what, values, known in (("precision", self.precisions, tuple(PRECISIONS)), ("ranges", (self.ranges,), RANGES),
                                    ("rounding", (self.rounding,), ROUNDINGS), ("smoothing", (self.smoothing,), SMOOTHINGS),
                                    ("activations", (self.activations,), ("u8", "i8"))):
            for value in values:
                if value not in known:
                    raise ArgumentError(f"recipe {self.name}: {what} {value!r} is not one of {', '.join(filter(None, known))}")
        if not self.precisions:
            raise ArgumentError(f"recipe {self.name}: no precision is given, expected some of {', '.join(PRECISIONS)}")
        if not 50 < self.percentile <= 100:
            raise ArgumentError(f"recipe {self.name}: percentile must be over 50 and at most 100, found {self.percentile!r}")
        if not 0 <= self.strength <= 1:
            raise ArgumentError(f"recipe {self.name}: strength must be from 0 to 1, found {self.strength!r}")
        if self.byte_bits not in (0, 7, 8):
            raise ArgumentError(f"recipe {self.name}: byte_bits must be 7, 8, or 0 for what the target prefers, found {self.byte_bits!r}")
        if self.group < 0 or 0 < self.group < LEAST_GROUP:
            raise ArgumentError(f"recipe {self.name}: group must be 0, one scale a channel, or {LEAST_GROUP} or more, found {self.group!r}")

    @property
    def needs_data(self) -> bool:
        """Whether no weights alone can say what is to be done."""
        return any(PRECISIONS[name][1] == "static" for name in self.precisions)

    @property
    def needs_moments(self) -> bool:
        """Whether rounding looks at the second moments of inputs."""
        return self.rounding != "nearest"


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (
    Recipe("static int8", ("i8",), rounding="gptq", smoothing="best"),
    Recipe("dynamic int8", ("i8 dynamic",), rounding="gptq"),
    Recipe("static int8 plain", ("i8",)),
    Recipe("weight-only int8", ("w8",)),
    Recipe("weight-only int4", ("w4",), rounding="gptq"),
    Recipe("weight-only int2", ("w2",), rounding="gptq", group=32, symmetric=False),
    Recipe("w4a8", ("w4a8",), rounding="gptq"),
    Recipe("llm_int8", (PRECISION_OF_OUTLIERS,)),
    Recipe("bf16", ("bf16",), rounding="gptq"),
    Recipe("mixed", ("i8", "i8 dynamic", "bf16"), rounding="gptq", smoothing="best"),
)}


def recipe_named(recipe: Recipe | str) -> Recipe:
    """The recipe of that name, or the recipe itself."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ArgumentError(f"quantize: recipe {recipe!r} is not one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def without_data(recipe: Recipe) -> Recipe:
    """The recipe as far as weights alone allow: rounding to nearest, no smoothing, no correction."""
    if recipe.needs_data:
        static = next(name for name in recipe.precisions if PRECISIONS[name][1] == "static")
        raise ArgumentError(f"quantize: recipe {recipe.name!r} has static activations ({static}), whose ranges only data can tell",
                            hint="give calibration data, or take 'dynamic int8' or a weight-only recipe")
    return replace(recipe, rounding="nearest", smoothing="", correct_bias=False)
