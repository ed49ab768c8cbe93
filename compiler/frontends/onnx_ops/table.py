"""Every ONNX operator that is known, by domain: the joined tables of the operators' modules."""

from __future__ import annotations

from . import (
               attention,
               blocks,
               contraction,
               control,
               losses,
               math,
               neural,
               places,
               quantization,
               recurrent,
               reduction,
               resize,
               sampling,
               selection,
               shape,
               spectral,
)
from .context import Operators

MODULES = (attention, blocks, contraction, control, losses, math, neural, places, quantization, recurrent, reduction, resize, sampling,
           selection, shape, spectral)
STANDARD: Operators = {name: operator for module in MODULES for name, operator in module.OPS.items()}
# domain -> operators; the standard's own domain has two spellings
DOMAINS: dict[str, Operators] = {"": STANDARD, "ai.onnx": STANDARD, "ai.onnx.preview": attention.PREVIEW}

STRINGS = "strings are not supported"
BY_DATA = "the size of its result is decided by data"
RANDOM = "random numbers are not supported"
SEQUENCES = "sequences and optional values are not supported"
# operators of the standard that are refused, and why; an operator that is neither here nor above is just unknown
REFUSED: dict[str, str] = {
    "Bernoulli": RANDOM, "ConcatFromSequence": SEQUENCES, "ImageDecoder": "images are not supported",
    "Multinomial": RANDOM, "Optional": SEQUENCES,
    "OptionalGetElement": SEQUENCES, "OptionalHasElement": SEQUENCES, "RandomNormal": RANDOM,
    "RandomNormalLike": RANDOM, "RandomUniform": RANDOM, "RandomUniformLike": RANDOM, "RegexFullMatch": STRINGS,
    "SequenceAt": SEQUENCES, "SequenceConstruct": SEQUENCES, "SequenceEmpty": SEQUENCES, "SequenceErase": SEQUENCES,
    "SequenceInsert": SEQUENCES, "SequenceLength": SEQUENCES, "SequenceMap": SEQUENCES, "SplitToSequence": SEQUENCES,
    "StringConcat": STRINGS, "StringNormalizer": STRINGS, "StringSplit": STRINGS, "TfIdfVectorizer": STRINGS,
    "Unique": BY_DATA,
}
