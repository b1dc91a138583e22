"""The Triton backend without a GPU: buckets, launches, binaries, and steps in the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmarks
import pytest
import torch
from torch.optim.adam import adam
from torch.utils._python_dispatch import TorchDispatchMode

import manifoldnet as mn
from manifoldnet.optim.backends import triton
from manifoldnet.optim.backends.layout import dense_layout
from manifoldnet.optim.step import HyperParameters, SliceGeometry, StepInput, slice_geometry

pytest.importorskip("triton", reason="Triton is for Linux")

ADAM = HyperParameters(1e-3, keep=0.9, fresh=0.1, beta2=0.999, eps=1e-8)
GEOMETRIES = {
    "rows": slice_geometry(mn.Oblique(0)),
    "columns": slice_geometry(mn.Oblique(1)),
    "whole": slice_geometry(mn.Sphere()),
    "scaled columns": slice_geometry(mn.ScaledEuclidean(1)),
}


def test_devices() -> None:
    assert triton.is_available(torch.device("cuda"))
    assert not triton.is_available(torch.device("cpu"))  # but for the interpreter
    assert not triton.is_available(torch.device("meta"))


class Launches:
    """Kernels that count how often they are launched."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.programs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        launches = self

        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                launches.names.append(name)
                launches.programs += grid
                return lambda *args, **constants: None

        return Kernel()


class Operators(TorchDispatchMode):
    """Counts operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    found = Launches()
    monkeypatch.setattr(triton, "_kernels", lambda: found)
    return found


def _work(
    geometry: SliceGeometry, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> StepInput:
    """A weight with Adam's state on the meta device, where launches are counted."""
    x = torch.empty(shape, dtype=dtype, device="meta")
    computed = torch.promote_types(dtype, torch.float32)
    b = torch.empty(shape, dtype=computed, device="meta")
    s = mn.geometry.Slices(geometry.dim).inner(b, b)
    return StepInput(x, torch.empty_like(x), geometry, b, s=s)


def _layouts(works: list[StepInput]) -> list[Any]:
    return [dense_layout(work.x, work.geometry.dim, {work.x.dtype}) for work in works]


@pytest.mark.parametrize("name", ["resnet50", "gpt2"])
@pytest.mark.parametrize(("slices", "most"), [("rows", 10), ("columns", 20), ("whole", 20)])
def test_a_step_of_a_network_takes_few_launches(
    name: str, slices: str, most: int, launches: Launches
) -> None:
    """Adam, with torch's own for the other weights, and the copy of the table."""
    shapes = benchmarks.SHAPES[name]
    works = [_work(GEOMETRIES[slices], shape) for shape in shapes if len(shape) > 1]
    assert len(works) == {"resnet50": 54, "gpt2": 50}[name]
    vectors = [torch.empty(shape, device="meta") for shape in shapes if len(shape) == 1]
    free = [[torch.empty_like(x) for x in vectors] for _ in range(3)]
    counts = [torch.zeros((), device="meta") for _ in vectors]
    plans = triton.Plans()
    for t in (1, 2):
        now = [work._replace(unbias=(1 - 0.9**t, 1 - 0.999**t)) for work in works]
        launches.names.clear()
        with Operators() as operators:
            triton.step(now, ADAM, _layouts(works), plans)
            adam(
                vectors, *free, [], counts, foreach=False, fused=True, amsgrad=False,
                beta1=0.9, beta2=0.999, lr=1e-3, weight_decay=0, eps=1e-8, maximize=False,
            )  # fmt: skip
    assert len(launches.names) + len(operators.names) <= most, (launches.names, operators.names)
    assert ("gram" in launches.names) is (slices != "rows")


def test_the_number_of_weights_does_not_count(launches: Launches) -> None:
    taken = []
    for count in (10, 1000):
        works = [_work(GEOMETRIES["columns"], (8, 8)) for _ in range(count)]
        launches.names.clear()
        with Operators() as operators:
            triton.step(works, ADAM, _layouts(works))
        taken.append(len(launches.names) + len(operators.names))
    assert taken[0] == taken[1]


def test_a_bucket_for_each_type_geometry_and_algorithm(launches: Launches) -> None:
    many = [
        _work(geometry, (64, 48), dtype)
        for geometry in (GEOMETRIES["rows"], GEOMETRIES["columns"])
        for dtype in (torch.float32, torch.float32, torch.bfloat16)
    ]
    triton.step(many, ADAM, _layouts(many))
    assert sorted(launches.names) == ["gram", "gram", "rows", "rows", "update", "update"]
    launches.names.clear()
    doubles = [_work(GEOMETRIES["columns"], (64, 48), torch.float64)]
    triton.step(doubles, ADAM, _layouts(doubles))
    assert launches.names == ["gram", "update"]
    launches.names.clear()
    radii = [_work(slice_geometry(mn.Oblique(0, radius)), (4, 3)) for radius in (1.0, 2.0)]
    triton.step(radii, ADAM, _layouts(radii))
    assert launches.names == ["rows"]


def test_long_slices_are_divided(launches: Launches) -> None:
    for shape, kernels in (((10, 1 << 20), {"gram", "update"}), ((8192, 28672), {"rows"})):
        launches.names.clear()
        works = [_work(GEOMETRIES["rows"], shape)]
        triton.step(works, ADAM, _layouts(works))
        assert set(launches.names) == kernels
    launches.programs.clear()
    works = [_work(GEOMETRIES["whole"], (1 << 15, 1 << 15))]
    plans = triton.Plans()
    triton.step(works, ADAM, _layouts(works), plans)
    assert min(launches.programs) >= 4096
    (plan,) = plans._plans.values()
    assert plan.partial.numel() * 8 < 1 << 20


def test_the_workspace_is_small_against_the_weights(launches: Launches) -> None:
    plans, works = triton.Plans(), [_work(GEOMETRIES["columns"], (1 << 15, 1 << 15))]
    triton.step(works, ADAM, _layouts(works), plans)
    (plan,) = plans._plans.values()
    assert plan.partial.nbytes + plan.sums.nbytes < 0.05 * works[0].x.nbytes


def test_graphs_keep_what_they_were_captured_with(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, works = triton.Plans(), [_work(GEOMETRIES["rows"], (4, 3))]
    other = ADAM._replace(lr=2e-3)
    capturing = [False]
    monkeypatch.setattr(triton, "_capturing", lambda device: capturing[0])
    triton.step(works, ADAM, _layouts(works), plans)
    capturing[0] = True
    with pytest.raises(RuntimeError, match="capturable"):
        triton.step(works, other, _layouts(works), plans)
    launches.names.clear()
    triton.step(works, ADAM, _layouts(works), plans)
    assert launches.names == ["rows"]
    (captured,) = plans._plans.values()
    table = captured.table
    capturing[0] = False
    for hyper in (other, ADAM, other):
        triton.step(works, hyper, _layouts(works), plans)
    assert captured.table is table
    assert captured in plans._captured
    monkeypatch.setattr(triton, "_MOST_PLANS", 4)
    for count in range(1, 12):  # other weights, and more of them
        some = [_work(GEOMETRIES["rows"], (4, count))]
        triton.step(some, ADAM, _layouts(some), plans)
    assert captured in plans._captured
    assert len(plans._plans) <= 4


# --- binaries -------------------------------------------------------------------------------------

TARGETS = {
    "sm_80": ("cuda", 80, 32, "cubin"),
    "sm_90": ("cuda", 90, 32, "cubin"),
    "gfx942": ("hip", "gfx942", 64, "hsaco"),
}
# Between them every branch of the kernels.
OPTIONS = [
    triton._Options(torch.float32, True, True, False, False, True, False, 0, True),
    triton._Options(torch.float64, True, False, True, False, False, False, 1, True),
    triton._Options(torch.bfloat16, True, True, False, True, True, False, 1, True),
    triton._Options(torch.float16, False, False, False, False, False, True, 2, True),
]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("target", "options"),
    [
        *(("sm_80", options) for options in OPTIONS[:1]),
        *(("sm_90", options) for options in OPTIONS[:2]),
        *(
            pytest.param(target, options, marks=pytest.mark.slow)
            for target in ("sm_80", "sm_90", "gfx942")
            for options in OPTIONS
        ),
    ],
    ids=lambda value: str(getattr(value, "weight", value)),
)
def test_kernels_compile(
    target: str, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton as language
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = triton._kernels()
    *names, binary = TARGETS[target]
    tile = {"LANES": triton._ABREAST, "HEIGHT": triton._HEIGHT}
    constants, types = options.constants(), options.types()
    variants = [
        (kernels.rows, {**constants, "LANES": triton._LANES}, 4),
        (kernels.gram, {**constants, **tile, "TANGENT": False, "MIX": False}, triton._WARPS),
        (kernels.gram, {**constants, **tile, "TANGENT": False, "MIX": True}, triton._WARPS),
        (kernels.gram, {**constants, **tile, "TANGENT": True, "MIX": False}, triton._WARPS),
        (kernels.update, {**types, **tile, "STORE": options.adam, "AMSGRAD": options.amsgrad},
         triton._WARPS),
    ]  # fmt: skip
    pointers = {"table": "*i64", "partial": "*fp64", "high": "i32"}
    for kernel, given, warps in variants:
        signature = {
            name: "constexpr" if name in given else pointers.get(name, "*i32")
            for name in kernel.arg_names
        }
        places = {(kernel.arg_names.index(name),): value for name, value in given.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        compiled = language.compile(source, GPUTarget(*names), options={"num_warps": warps})
        assert len(compiled.asm[binary]) > 1000


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    "chosen",
    ["float32 and (amsgrad or manifolds or long)", pytest.param("", marks=pytest.mark.slow)],
)
def test_steps_in_the_interpreter(chosen: str) -> None:
    """In a process of its own: Triton chooses the interpreter when it is imported."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
         "-k", chosen, str(here / "triton_steps.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "neither a GPU" not in done.stdout
