"""Effects and cost of importing manifoldnet, and the contents of the wheel."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fresh import Forks

ROOT = Path(__file__).parents[1]
HEAVY = {"sklearn", "datasets", "matplotlib", "hypothesis", "PIL", "pandas", "tqdm"}
HEAVY |= {"geoopt", "pymanopt", "scipy", "triton"}

# Prints the packages that an import adds to those that torch and numpy load, and the global
# settings of torch and Python that it changes.
PROBE = """
import importlib, json, random, signal, sys, threading, warnings
import numpy, torch
from torch.nn.modules import module

optimizer = sys.modules["torch.optim.optimizer"]

def settings():
    hooks = [name for name in vars(module) if name.startswith("_global_") and "hooks" in name]
    assert "_global_parameter_registration_hooks" in hooks
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "print options": str(vars(torch._tensor_str.PRINT_OPTS)),
        "swap flags": [
            torch.__future__.get_overwrite_module_params_on_conversion(),
            torch.__future__.get_swap_module_params_on_conversion(),
        ],
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": str(numpy.random.get_state()[1:]),
        "python's random state": str(random.getstate()),
        "numpy's errors": str(numpy.geterr()),
        "module hooks": {name: len(getattr(module, name)) for name in hooks},
        "optimizer hooks": [
            len(optimizer._global_optimizer_pre_hooks),
            len(optimizer._global_optimizer_post_hooks),
        ],
        "warning filters": str(warnings.filters),
        "Ctrl-C": str(signal.getsignal(signal.SIGINT)),
        "excepthook": str(sys.excepthook),
        "python threads": threading.active_count(),
        "methods of modules": sorted(vars(torch.nn.Module)),
        "methods of tensors": [id(value) for value in vars(torch.Tensor).values()],
    }

before, loaded = settings(), set(sys.modules)
importlib.import_module(sys.argv[1])
after = settings()
json.dump({
    "loaded": sorted({name.split(".")[0] for name in set(sys.modules) - loaded}),
    "changed": [name for name in before if before[name] != after[name]],
}, sys.stdout)
"""


def probe(fresh: Forks, module: str, folder: Path = ROOT) -> dict[str, list[str]]:
    result = fresh(PROBE, module, folder=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# The command line must answer --help before anything heavy is loaded.
@pytest.mark.parametrize("module", ["manifoldnet", "manifoldnet.cli", "manifoldnet.experiments"])
@pytest.mark.thorough
def test_import_is_light_and_changes_nothing(fresh: Forks, module: str) -> None:
    seen = probe(fresh, module)
    assert not HEAVY & set(seen["loaded"])
    assert seen["changed"] == []


USE = """
import sys, torch
import manifoldnet as mn

model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
mn.declare(model, "0.weight", mn.Oblique(), project=True)
mn.declare_all(model, lambda name, *_: mn.ScaledEuclidean(1) if name == "2.weight" else None)
optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.1, momentum=0.9)
other = torch.optim.AdamW(model.parameters())
batch = torch.randn(8, 3), torch.randint(2, (8,))
for each in (optimizer, other):
    torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    each.step()
mn.project_(model)
mn.undeclare(model, "2.weight")
model = torch.nn.Sequential(*model)
mn.symmetry.discover(model, torch.nn.functional.cross_entropy, [batch])
print(*sorted({"geoopt", "pymanopt", "scipy"} & set(sys.modules)))
assert "ManifoldParameter" in dir(mn)
mn.ManifoldParameter(mn.Sphere().random(3), mn.Sphere())
assert "geoopt" in sys.modules
assert not hasattr(mn, "Manifoldparameter")
"""


def test_only_a_manifold_parameter_loads_geoopt(fresh: Forks) -> None:
    """Neither declarations, nor steps of any optimizer, nor symmetries need it."""
    result = fresh(USE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


@pytest.mark.thorough
def test_the_probe_sees_effects(fresh: Forks, tmp_path: Path) -> None:
    (tmp_path / "effects.py").write_text(
        "import torch, hypothesis\n"
        "torch.rand(1)\n"
        "torch.set_default_dtype(torch.float64)\n"
        "torch.nn.modules.module.register_module_parameter_registration_hook(lambda *_: None)\n"
    )
    seen = probe(fresh, "effects", tmp_path)
    assert "hypothesis" in seen["loaded"]
    assert seen["changed"] == ["default dtype", "torch's random state", "module hooks"]


def test_geometry_needs_no_geoopt_until_one_of_its_objects_is_asked_for(fresh: Forks) -> None:
    program = """
import sys
sys.modules["manifoldnet"] = type(sys)("manifoldnet")  # without what else stands in the package
sys.modules["manifoldnet"].__path__ = ["manifoldnet"]
from manifoldnet.geometry import Oblique, Product, from_geoopt, from_spec, to_geoopt
from_spec(Product([(Oblique(), (2, 3))]).spec())
try:
    from_geoopt(3)
except TypeError:
    pass
assert "geoopt" not in sys.modules
assert to_geoopt(Oblique(), (2, 3)).name == "Oblique"
assert from_spec(from_geoopt(sys.modules["geoopt"].Sphere()).spec()).name == "Sphere"
"""
    result = fresh(program)
    assert result.returncode == 0, result.stderr


# Programs that use what other packages warn about when they are imported.
QUIET = {
    "geoopt": """
import manifoldnet as mn
mn.ManifoldParameter(mn.Sphere().random(3), mn.Sphere())
import geoopt
mn.from_geoopt(geoopt.PoincareBall()).random(3, 2)
""",
    "laws": """
from manifoldnet import Oblique
from manifoldnet.testing import GeodesicLaws
class Laws(GeodesicLaws):
    manifold, shape, examples = Oblique(), (3, 2), 1
Laws().test_geodesic_starts_with_its_velocity()
""",
    "pymanopt": "from manifoldnet.interop import pymanopt",
}


@pytest.mark.parametrize("program", QUIET.values(), ids=QUIET)
@pytest.mark.thorough
def test_other_packages_give_no_warnings(fresh: Forks, program: str) -> None:
    result = fresh(program, warnings="error")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.thorough
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert {name.split("/")[0] for name in names} == {"manifoldnet", info}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "manifoldnet").rglob("*.py")}
    assert {name for name in names if name.startswith("manifoldnet/")} == {
        *sources,
        "manifoldnet/py.typed",
        "manifoldnet/optim/backends/cpp/step.cpp",
    }
    assert {f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= names


@pytest.mark.thorough
def test_the_first_lines_of_the_readme_run_from_the_wheel(
    fresh: Forks, wheel: Path, tmp_path: Path
) -> None:
    """In an empty folder, without the checkout, and with no warning of any package."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert block is not None
    program = f"{block[1]}\nprint(mn.__file__)"
    result = fresh(program, folder=tmp_path, path=(str(site),), warnings="error")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == str(site / "manifoldnet" / "__init__.py")


def test_the_changelog_knows_this_version() -> None:
    import manifoldnet

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{manifoldnet.__version__}]" in changelog
