"""Every ONNX operator that is known, by domain: the joined tables of the operators' modules."""

from __future__ import annotations

from . import contraction, control, math, neural, quantization, recurrent, reduction, resize, shape
from .context import Operators

STANDARD: Operators = {
    **contraction.OPS, **control.OPS, **math.OPS, **neural.OPS, **quantization.OPS, **recurrent.OPS, **reduction.OPS,
    **resize.OPS, **shape.OPS,
}
# domain -> operators; the standard's own domain has two spellings
DOMAINS: dict[str, Operators] = {"": STANDARD, "ai.onnx": STANDARD}

STRINGS = "strings are not supported"
BY_DATA = "the size of its result is decided by data"
RANDOM = "random numbers are not supported"
SEQUENCES = "sequences and optional values are not supported"
# operators of the standard that are refused, and why; an operator that is neither here nor above is just unknown
REFUSED: dict[str, str] = {
    "Bernoulli": RANDOM, "Compress": BY_DATA, "ConcatFromSequence": SEQUENCES, "ImageDecoder": "images are not supported",
    "Multinomial": RANDOM, "NonMaxSuppression": BY_DATA, "NonZero": BY_DATA, "Optional": SEQUENCES,
    "OptionalGetElement": SEQUENCES, "OptionalHasElement": SEQUENCES, "RandomNormal": RANDOM,
    "RandomNormalLike": RANDOM, "RandomUniform": RANDOM, "RandomUniformLike": RANDOM, "RegexFullMatch": STRINGS,
    "SequenceAt": SEQUENCES, "SequenceConstruct": SEQUENCES, "SequenceEmpty": SEQUENCES, "SequenceErase": SEQUENCES,
    "SequenceInsert": SEQUENCES, "SequenceLength": SEQUENCES, "SequenceMap": SEQUENCES, "SplitToSequence": SEQUENCES,
    "StringConcat": STRINGS, "StringNormalizer": STRINGS, "StringSplit": STRINGS, "TfIdfVectorizer": STRINGS,
    "Unique": BY_DATA,
}
