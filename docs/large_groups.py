"""Scaling groups of GPT-2 small, ResNet-18 and ViT-S, and what the moving frame costs on them.

    python docs/large_groups.py    writes results/widening.csv and results/moving_frame_cost.csv

Needs transformers. A group is discovered on a narrow copy and widened. The cost is that of AdamW
(fused, float32) with `make_invariant` less that of AdamW alone, in per cent of a training iteration
(forward, backward, step): medians of calls that take turns, on a processor. A sample of GPT-2 has
64 words.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from timing import interleaved
from torch import nn

import manifoldnet as mn

RESULTS = Path(__file__).parent / "results"


class Network(NamedTuple):
    """A network of several sizes.

    Attributes:
        make: makes it, of given sizes.
        batch: makes a batch for it, of a given number of samples.
        narrow: sizes of the copy that is discovered.
        wide: sizes of the network.
        samples: that widening is verified on.
        batches: numbers of samples of a training iteration.
    """

    make: Callable[..., nn.Module]
    batch: Callable[..., dict[str, Any]]
    narrow: tuple[int, ...]
    wide: tuple[int, ...]
    samples: int
    batches: tuple[int, ...]


def gpt2(blocks: int, width: int, heads: int, words: int) -> nn.Module:
    """GPT-2 with tied embeddings, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    end = {"bos_token_id": None, "eos_token_id": None}
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_layer": blocks, "n_embd": width, "n_head": heads, "vocab_size": words}
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, **rates, **end))
    return model


def tokens(samples: int, blocks: int, width: int, heads: int, words: int) -> dict[str, Any]:
    """Sentences of 64 words, or of 6 for a narrow copy."""
    x = torch.randint(words, (samples, 64 if width > 100 else 6))
    return {"input_ids": x, "labels": x}


def vit(blocks: int, width: int, heads: int, hidden: int, image: int, patch: int) -> nn.Module:
    """A vision transformer with 10 classes."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        num_hidden_layers=blocks,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=hidden,
        image_size=image,
        patch_size=patch,
        num_labels=10,
    )
    model: nn.Module = ViTForImageClassification(config)
    return model


def images(samples: int, *sizes: int) -> dict[str, Any]:
    """Images of the last size but one, in ten classes."""
    x = torch.randn(samples, 3, sizes[-2], sizes[-2])
    return {"pixel_values": x, "labels": torch.randint(10, (samples,))}


def resnet(a: int, b: int, c: int, d: int, image: int, depth: int) -> nn.Module:
    """A residual network of basic blocks with 10 classes."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=a,
        hidden_sizes=[a, b, c, d],
        depths=[depth] * 4,
        layer_type="basic",
        num_labels=10,
    )
    model: nn.Module = ResNetForImageClassification(config)
    return model


NETWORKS = {
    "GPT-2 small": Network(gpt2, tokens, (3, 8, 2, 11), (12, 768, 12, 50257), 2, (2, 8)),
    "ResNet-18": Network(
        resnet, images, (3, 4, 5, 6, 64, 2), (64, 128, 256, 512, 64, 2), 8, (16, 64)
    ),
    "ViT-S/16": Network(vit, images, (3, 8, 2, 6, 4, 2), (12, 384, 6, 1536, 224, 16), 2, (8,)),
}


def widened(network: Network, sizes: tuple[int, ...]) -> tuple[nn.Module, Any, float, float]:
    """A network of given sizes, its group, and the seconds of discovery and widening."""
    torch.manual_seed(0)
    batch = network.batch(32, *network.narrow)
    began = perf_counter()
    narrow = mn.symmetry.discover(network.make(*network.narrow), None, [batch])
    found = perf_counter()
    model = network.make(*sizes)
    batch = network.batch(network.samples, *sizes)
    start = perf_counter()
    group = narrow.widen(model, None, batch)
    return model, group, found - began, perf_counter() - start


def measured(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of a network's group, and rows of costs."""
    network = NETWORKS[name]
    model, group, discovery, widening = widened(network, network.wide)
    found = {
        "network": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "slices": sum(sum(p.shape[:2]) for p in model.parameters()),
        "dimension": group.dimension,
        "non-trivial": group.nontrivial.dimension,
        "seconds of discovery": f"{discovery:.0f}",
        "seconds of widening": f"{widening:.0f}",
    }
    twin = copy.deepcopy(model)
    plain = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    framed = torch.optim.AdamW(twin.parameters(), lr=1e-5, fused=True)
    mn.symmetry.make_invariant(framed, twin, group)
    rows = []
    for samples in network.batches:
        batch = network.batch(samples, *network.wide)

        def iteration(batch: dict[str, Any] = batch) -> None:
            plain.zero_grad()
            model(**batch).loss.backward()
            plain.step()
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                q.grad = p.grad

        iteration()
        framed.step()
        calls = {"iteration": iteration, "step": plain.step, "framed": framed.step}
        times = interleaved(calls, rounds=7)
        whole, step, inside = (median(times[key]) for key in calls)
        rows.append(
            {
                "network": name,
                "samples": samples,
                "threads": torch.get_num_threads(),
                "iteration, ms": f"{1e3 * whole:.0f}",
                "AdamW, ms": f"{1e3 * step:.1f}",
                "AdamW in the frame, ms": f"{1e3 * inside:.1f}",
                "cost, %": f"{100 * (inside - step) / whole:.1f}",
            }
        )
    return found, rows


def write(file: str, rows: list[dict[str, Any]], names: Sequence[str]) -> None:
    """Write rows of some networks; those of the others stay."""
    path = RESULTS / file
    kept = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    rows += [row for row in kept if row["network"] not in names]
    rows.sort(key=lambda row: list(NETWORKS).index(row["network"]))
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", help="names of networks; all, if none")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.networks or list(NETWORKS)
    found = [measured(name) for name in names]
    write("widening.csv", [row for row, _ in found], names)
    write("moving_frame_cost.csv", [row for _, rows in found for row in rows], names)
