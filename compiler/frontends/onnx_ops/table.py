"""Every ONNX operator that is known, by domain: the joined tables of the operators' modules."""

from __future__ import annotations

from . import (
               attention,
               blocks,
               classic,
               contraction,
               contrib_attention,
               contrib_layers,
               contrib_quantized,
               contrib_tables,
               control,
               losses,
               math,
               neural,
               ngrams,
               places,
               quantization,
               recurrent,
               reduction,
               resize,
               sampling,
               selection,
               sequences,
               shape,
               spectral,
               training,
               trees,
               unique,
)
from .context import Operators

MODULES = (attention, blocks, contraction, control, losses, math, neural, ngrams, places, quantization, recurrent, reduction, resize,
           sampling, selection, sequences, shape, spectral, unique)
STANDARD: Operators = {name: operator for module in MODULES for name, operator in module.OPS.items()} | contrib_layers.STANDARD
CONTRIBUTED: Operators = contrib_attention.OPS | contrib_layers.OPS | contrib_quantized.OPS | contrib_tables.OPS
# domain -> operators; the standard's own domain has two spellings
DOMAINS: dict[str, Operators] = {
    "": STANDARD, "ai.onnx": STANDARD, "ai.onnx.preview": attention.PREVIEW, "ai.onnx.preview.training": training.OPS,
    "ai.onnx.ml": classic.OPS | trees.OPS, "com.microsoft": CONTRIBUTED,
}

STRINGS = "strings are not supported"
RANDOM = "random numbers are not supported"
# operators of the standard that are refused, and why; an operator that is neither here nor above is just unknown
REFUSED: dict[str, str] = {
    "Bernoulli": RANDOM, "ImageDecoder": "images are not supported", "Multinomial": RANDOM, "RandomNormal": RANDOM,
    "RandomNormalLike": RANDOM, "RandomUniform": RANDOM, "RandomUniformLike": RANDOM, "RegexFullMatch": STRINGS,
    "StringConcat": STRINGS, "StringNormalizer": STRINGS, "StringSplit": STRINGS,
}
