"""docs/gpu.py without a GPU: reasons to measure nothing, cells, and the table."""

from __future__ import annotations

from typing import Any

import gpu
import pytest
import torch
from torch import nn

from manifoldnet.optim.backends import triton

pytestmark = pytest.mark.usefixtures("little_to_collect")

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--why-not"]):
        gpu.main(["--out", str(tmp_path), *arguments])
        assert "no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_old_torch_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu128")
    assert "older" in str(gpu.why_not(CPU))
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    assert "older" not in str(gpu.why_not(CPU))


@pytest.mark.parametrize("optimizer", gpu.OPTIMIZERS)
def test_a_cell(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With kernels that do nothing; what needs a GPU is left out."""
    pytest.importorskip("triton")
    launched = []

    class Kernels:
        def __getattr__(self, name: str) -> Any:
            return {(n,): lambda *_, **__: launched.append(name) for n in range(100)}

    monkeypatch.setattr(triton, "_kernels", Kernels)
    monkeypatch.setattr(torch, "compile", lambda step: step)
    rows = gpu.measure("tiny", gpu.shapes_of("tiny"), optimizer, CPU, 0.01)
    found = {row.implementation: row for row in rows}
    assert set(found) >= {gpu.BASE, "triton rows", "triton columns"}
    assert found[gpu.BASE].ratio_to_torch_fused == "1.000"
    assert set(launched) == {"rows", "gram", "update"}
    header, ruler, line = gpu.table(rows)
    assert header.count("|") == ruler.count("|") == line.count("|")
    assert line.startswith(f"| tiny | {optimizer} | {found[gpu.BASE].median_ms} |")


def test_implementations_share_weights_and_gradients() -> None:
    cell = gpu.Weights([(2, 3), (2,)], CPU)
    one, other = cell.parameters(), cell.parameters()
    assert all(isinstance(p, nn.Parameter) for p in one)
    assert [p.data_ptr() for p in one] == [p.data_ptr() for p in other]
    assert all(p.grad is q.grad for p, q in zip(one, other, strict=True))


def test_a_billion() -> None:
    assert sum(n * m for n, m in gpu.shapes_of("billion")) == 10**9
