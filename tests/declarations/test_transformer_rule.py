"""`rules.transformer`: weights of networks by their use, and the reasons for what is free."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from declared_net import unchanged, values
from torch import Tensor, nn
from torch.nn import functional as F

import manifoldnet as mn
from manifoldnet.rules import transformer

ROWS, COLUMNS = mn.Oblique(dim=0), mn.Oblique(dim=1)
TOKENS = torch.arange(6).reshape(2, 3)


def declared(model: nn.Module, *given: Any, **options: Any) -> dict[str, mn.Manifold]:
    return mn.declare_all(model, transformer(*given, **options), project=True)


# --- networks -------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """A linear layer with its weight as in × out, as GPT-2's in Hugging Face's code."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(0.02 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class Gpt2Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.attn_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.mlp_proj = Conv1D(4 * width, width), Conv1D(width, 4 * width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, h: Tensor) -> Tensor:
        parts = self.c_attn(self.ln_1(h)).split(h.size(-1), dim=2)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = self.dropout(self.attn_proj(y.transpose(1, 2).flatten(2).contiguous())) + h
        return h + self.dropout(self.mlp_proj(F.gelu(self.c_fc(self.ln_2(h)))))


class Gpt2(nn.Module):
    """The parts of GPT-2, with a head that is tied or not."""

    def __init__(self, tied: bool = True, width: int = 8) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, width), nn.Embedding(5, width)
        self.h = nn.ModuleList(Gpt2Block(width, 2) for _ in range(3))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 11, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> dict[str, Any]:
        h = self.wte(tokens) + self.wpe(torch.arange(tokens.size(1)))
        hidden = [h := block(h) for block in self.h]
        return {"logits": self.lm_head(self.ln_f(h)), "sizes": [len(hidden)]}


class RMSNorm(nn.Module):
    """Written out, as in Llama's code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


def rotated(t: Tensor) -> Tensor:
    """Rotary position embedding: a sum of two products with one projection."""
    angle = torch.arange(t.size(-2)).unsqueeze(1) / torch.arange(1, t.size(-1) + 1)
    a, b = t.chunk(2, dim=-1)
    angle = angle.to(t.dtype)
    return t * angle.cos() + torch.cat((-b, a), dim=-1) * angle.sin()


class LlamaBlock(nn.Module):
    """Llama's block; with `parallel`, attention and MLP side by side, as in GPT-J."""

    def __init__(self, width: int, parallel: bool) -> None:
        super().__init__()
        self.parallel = parallel
        self.n1, self.n2 = RMSNorm(width), RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, 12, bias=False) for _ in range(2))
        self.down = nn.Linear(12, width, bias=False)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (2, -1)).transpose(1, 2) for w in (self.q, self.k, self.v))
        q, k = rotated(q), rotated(k)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)), -1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def forward(self, h: Tensor) -> Tensor:
        if self.parallel:
            x = self.n1(h)
            return h + self.attend(x) + self.feed(x)
        h = h + self.attend(self.n1(h))
        return h + self.feed(self.n2(h))


class Llama(nn.Module):
    def __init__(self, parallel: bool = False, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layers = nn.ModuleList(LlamaBlock(width, parallel) for _ in range(2))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h))


class Ngpt(nn.Module):
    """nGPT's update h ← N(h + α (N(f(h)) − h)), with raw matrices as in × out and out × in."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.up = nn.Parameter(torch.randn(width, 9))  # in × out
        self.down = nn.Parameter(torch.randn(width, 9))  # out × in
        self.alpha = nn.Parameter(torch.full((width,), 0.1))
        self.head = nn.Linear(width, 11, bias=False)
        self.gain = nn.Parameter(torch.ones(11))

    def forward(self, tokens: Tensor) -> Tensor:
        h = F.normalize(self.embed(tokens), dim=-1)
        f = F.linear(F.silu(h @ self.up), self.down)
        h = F.normalize(h + self.alpha * (F.normalize(f, dim=-1) - h), dim=-1)
        return self.gain * self.head(h)


class Modulated(nn.Module):
    """Layers of a diffusion transformer: scale, shift and gate come from a condition."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.patches, self.time = nn.Linear(4, width), nn.Linear(3, width)
        self.modulation = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)
        self.final = nn.Linear(width, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.patches(x)
        shift, scale, gate = self.modulation(F.silu(self.time(t))).unsqueeze(1).chunk(3, dim=-1)
        for _ in range(2):
            y = self.norm(h) * (1 + scale) + shift
            h = h + gate * self.down(F.gelu(self.up(y)))
        return self.final(self.norm(h))


class Tagger(nn.Module):
    """Embedding, a recurrent layer, a head: no residual stream."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.rnn = getattr(nn, kind)(5, 6, batch_first=True, **options)
        self.head = nn.Linear(options.get("proj_size", 6), 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


# --- by use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_gpt_2_with_weights_as_in_times_out(tied: bool) -> None:
    model = Gpt2(tied)
    report = declared(model, TOKENS)
    expected = {"wte.weight": ROWS, "wpe.weight": ROWS}
    for i in range(3):
        for name in ("c_attn", "c_fc"):
            expected[f"h.{i}.{name}.weight"] = COLUMNS  # outputs are the second dimension
        for name in ("attn_proj", "mlp_proj"):
            expected[f"h.{i}.{name}.weight"] = ROWS
    if tied:
        expected["lm_head.weight"] = ROWS
        assert "tied" in report.why["wte.weight"]
        assert "tied" not in report.why["wpe.weight"]
    else:
        assert "sharpness" in report.free["lm_head.weight"]
    assert report == expected
    assert set(report.free) == dict(model.named_parameters()).keys() - report.keys()
    assert "read the residual stream" in report.why["h.0.c_attn.weight"]
    assert "written to the residual stream" in report.why["h.2.mlp_proj.weight"]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_with_rotary_positions_and_gates(parallel: bool, dtype: torch.dtype) -> None:
    model = Llama(parallel).to(dtype)
    expected = {"embed.weight": ROWS}
    for i in range(2):
        for name in ("q", "k", "v", "gate", "up"):
            expected[f"layers.{i}.{name}.weight"] = ROWS
        for name in ("o", "down"):
            expected[f"layers.{i}.{name}.weight"] = COLUMNS
    assert declared(model, TOKENS) == expected
    mn.verify(model)


def test_ngpt_with_raw_matrices() -> None:
    head = mn.Oblique(radius=2.0)
    assert declared(Ngpt(), TOKENS, head=head) == {
        "embed.weight": ROWS,
        "up": COLUMNS,
        "down": COLUMNS,
        "head.weight": head,
    }


def test_modulation_neither_reads_nor_writes() -> None:
    report = declared(Modulated(), {"x": torch.randn(2, 3, 4), "t": torch.randn(2, 3)})
    assert report == {
        "patches.weight": COLUMNS,  # the stream starts with its vectors
        "up.weight": ROWS,
        "down.weight": COLUMNS,
    }
    for name in ("time", "modulation"):
        assert "neither reads nor writes" in report.free[f"{name}.weight"]
    assert "head" in report.free["final.weight"]


class Odd(nn.Module):
    """Matrices whose use does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.buckets = nn.Embedding(11, 4), nn.Embedding(11, 4)
        self.direct = nn.Linear(4, 4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.heads = nn.Parameter(torch.randn(2, 4, 4))
        self.table = nn.Parameter(torch.randn(3, 4))
        self.conv = nn.Conv1d(4, 4, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) + self.table
        h = h + self.direct(h)
        h = h + self.down(torch.relu(self.up(h)) * self.buckets(tokens).relu().mean())
        h = h + self.shared(torch.relu(self.shared(h)))
        return h + self.conv((h @ self.heads[0] @ self.heads[1]).mT).mT


def test_weights_whose_use_does_not_tell_are_free_with_the_reason() -> None:
    report = declared(Odd(), TOKENS)
    assert report == {"embed.weight": ROWS, "up.weight": ROWS, "down.weight": COLUMNS}
    for name, reason in {
        "direct.weight": "reads and writes",
        "buckets.weight": "does not go into the residual stream",
        "shared.weight": "used in two ways",
        "unused.weight": "no output",
        "heads": "otherwise than as the matrix",
        "table": "otherwise than as the matrix",
        "conv.weight": "convolution",
        "up.bias": "fewer than two",
    }.items():
        assert reason in report.free[name], name


def test_a_low_rank_update_of_a_writing_matrix_writes() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 2), nn.Linear(2, 4)
            self.up = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.up(x))
            return x + (self.base(y) + self.b(self.a(y)))

    report = declared(Adapted(), torch.randn(3, 4))
    assert report == {"up.weight": ROWS, "base.weight": COLUMNS, "b.weight": COLUMNS}


def test_a_stream_that_starts_from_a_buffer() -> None:
    class Prompted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("prompt", torch.randn(5, 3))
            self.start, self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, count: int) -> Tensor:
            h = self.start(self.prompt[:count])
            return h + self.down(torch.relu(self.up(h)))

    assert declared(Prompted(), (2,)) == {
        "start.weight": COLUMNS,
        "up.weight": ROWS,
        "down.weight": COLUMNS,
    }


# --- by type --------------------------------------------------------------------------------------

ATTENTION = {
    "packed": ({}, {"in_proj_weight": ROWS}),
    "separate": (
        {"kdim": 3, "vdim": 5},
        {f"{name}_proj_weight": ROWS for name in "qkv"},
    ),
}


@pytest.mark.parametrize(("options", "expected"), ATTENTION.values(), ids=ATTENTION)
def test_multihead_attention(options: dict[str, int], expected: dict[str, mn.Manifold]) -> None:
    layer = nn.MultiheadAttention(4, 2, add_bias_kv=True, **options)
    report = declared(layer)
    assert report == {**expected, "out_proj.weight": COLUMNS}
    assert set(report.free) == {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}


class Seq2Seq(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.core = nn.Transformer(8, 2, 2, 2, 12, batch_first=True, **options)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.core(x, x))


@pytest.mark.parametrize("example", [None, TOKENS])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_torchs_transformer(norm_first: bool, example: Tensor | None) -> None:
    model = Seq2Seq(norm_first=norm_first)
    report = declared(model, example)
    expected = {"embed.weight": ROWS}
    for name, p in model.named_parameters():
        if p.ndim == 2 and name.startswith("core"):
            writes = name.endswith(("out_proj.weight", "linear2.weight"))
            expected[name] = COLUMNS if writes else ROWS
    assert report == expected
    assert report.free["head.weight"].startswith("a head" if example is not None else "no layer")


def test_the_types_agree_with_the_use() -> None:
    """With torch's layers not recognized, the graph alone gives the same."""
    from manifoldnet.dataflow import uses

    model = Seq2Seq()
    by_type = mn.declare_all(model, transformer(), project=True)
    found = uses(model, (TOKENS,), {})
    for name, p in model.named_parameters():
        if name in by_type and name != "embed.weight":
            role = "writes" if by_type[name] == COLUMNS else "reads"
            assert (found[id(p)].role, found[id(p)].dim) == (role, 0), name


@pytest.mark.parametrize("example", [None, TOKENS])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("RNN", {}),
        ("GRU", {"num_layers": 2}),
        ("LSTM", {"bidirectional": False}),
        ("LSTM", {"proj_size": 2}),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers(kind: str, options: dict[str, Any], example: Tensor | None) -> None:
    model = Tagger(kind, **options)
    report = declared(model, example)
    expected = {"embed.weight": ROWS}
    for name, p in model.rnn.named_parameters():
        if p.ndim == 2:
            expected[f"rnn.{name}"] = COLUMNS if "weight_hr" in name else ROWS
    assert report == expected
    assert ("head" in report.free["head.weight"]) == (example is not None)


def test_a_cell() -> None:
    report = declared(nn.LSTMCell(4, 3))
    assert report == {"weight_ih": ROWS, "weight_hh": ROWS}


def test_linear_layers_need_an_example() -> None:
    with pytest.raises(ValueError, match=r"declares none.*give rules\.transformer an example"):
        declared(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)))


# --- options --------------------------------------------------------------------------------------


def test_the_manifold_and_the_head_are_given() -> None:
    before = Gpt2(tied=False)
    head = mn.ScaledEuclidean(dim=1)
    rule = transformer(TOKENS, manifold=mn.ScaledEuclidean, head=head)
    found = mn.declare_all(before, rule)
    assert found["lm_head.weight"] == head
    assert found["h.0.c_fc.weight"] == mn.ScaledEuclidean(1)
    tied = mn.declare_all(Gpt2(), rule)
    assert tied["wte.weight"] == tied["lm_head.weight"] == head
    assert mn.declare_all(Functional(), rule) == {"embed.weight": head}


class Functional(nn.Module):
    """A head that is tied without a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.embed(tokens)), self.embed.weight)


def test_a_model_is_left_as_it_was() -> None:
    model = Seq2Seq(dropout=0.5)
    model.core.encoder.eval()
    for p in model.head.parameters():
        p.requires_grad_(False)
    model.norm = nn.BatchNorm1d(3)
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = {name: p.requires_grad for name, p in model.named_parameters()}
    before, state = values(model), torch.get_rng_state()
    example = torch.randint(11, (2, 3))
    torch.set_rng_state(state)
    transformer(example).bind(model)
    assert unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert gradients == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.thorough
def test_frozen_weights_and_compiled_models() -> None:
    model = Llama()
    model.requires_grad_(False)
    model.layers[1].compile(backend="eager")
    found = declared(torch.compile(model), TOKENS)
    assert len(found) == 15
    assert mn.manifolds(model).keys() == {n.removeprefix("_orig_mod.") for n in found}


@pytest.mark.parametrize("manifold", [mn.Oblique, mn.ScaledEuclidean, mn.Polar])
def test_a_row_of_padding_stays_zero(manifold: Any) -> None:
    model = Tagger("GRU")
    model.embed = nn.Embedding(11, 5, padding_idx=3)
    report = declared(model, manifold=manifold)
    if manifold is mn.Polar:  # zero is a point there
        assert report["embed.weight"] == mn.Polar(0)
    else:
        assert report["embed.weight"] == manifold(0, zero_slices=(3,))
        assert "row 3 zero" in report.why["embed.weight"]
    assert not model.embed.weight[3].any()


def test_a_row_of_padding_that_is_not_zero_is_a_row() -> None:
    model = Tagger("GRU")
    model.embed = nn.Embedding.from_pretrained(torch.randn(11, 5), padding_idx=3)
    assert declared(model)["embed.weight"] == ROWS


def test_a_manifold_that_excepts_no_slices_leaves_padding_free() -> None:
    model = nn.Sequential(nn.Embedding(11, 5, padding_idx=0), nn.LSTM(5, 2))
    report = declared(model, manifold=lambda dim: mn.Stiefel())
    assert "row 0 zero (padding_idx), which Stiefel" in report.free["0.weight"]


def test_zero_initialized_projections_are_refused_by_name_and_nothing_is_declared() -> None:
    model = Llama()
    nn.init.zeros_(model.layers[1].down.weight)
    before = values(model)
    with pytest.raises(ValueError, match=r"layers\.1\.down\.weight.*Polar"):
        declared(model, TOKENS)
    assert mn.manifolds(model) == {}
    assert unchanged(model, before)
    found = mn.declare_all(model, transformer(TOKENS, manifold=mn.Polar))
    assert found["layers.1.down.weight"] == mn.Polar(dim=1)


@pytest.mark.parametrize(
    ("given", "options", "error", "text"),
    [
        ((), {"manifold": mn.Oblique()}, TypeError, "manifold must give"),
        ((), {"manifold": lambda dim: None}, TypeError, "manifold must give"),
        ((), {"head": mn.Oblique}, TypeError, "head must be a manifold"),
        (([TOKENS],), {}, TypeError, "example must be"),
    ],
)
def test_bad_arguments(given: Any, options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        transformer(*given, **options)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (transformer(torch.full((2, 3), 99)), "does not run through this Gpt2: index"),
        (transformer({"ids": TOKENS}), "does not run through this Gpt2: .*ids"),
        (transformer(head=ROWS), "no head is seen"),
    ],
)
def test_examples_that_do_not_fit_the_model(rule: Any, text: str) -> None:
    model = Gpt2(tied=False).train()
    with pytest.raises(ValueError, match=text):
        mn.declare_all(model, rule, project=True)
    assert mn.manifolds(model) == {}
    assert all(module.training for module in model.modules())


def test_a_model_without_differentiable_outputs() -> None:
    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(ValueError, match="cannot be seen"):
        declared(Detached(3, 3), torch.randn(2, 3))


def test_the_rule_by_itself_is_refused() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="bind"):
        transformer()("weight", layer, layer.weight)
