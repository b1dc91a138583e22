"""`manifoldnet symmetries`: group and table of the model that a factory makes, and errors."""

import sys

import pytest

from manifoldnet import cli, experiments, symmetry
from manifoldnet.experiments.progress import StatusLine
from manifoldnet.symmetry import factory

SOURCE = """
import torch
from torch import nn
from helper import images

from manifoldnet import Oblique, declare


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))
    return model, nn.functional.cross_entropy, [(images(), torch.randint(0, 3, (64,)))]


def make_with_optimizer():
    return *make(), lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3)


def make_normalized():
    model, *rest = make()
    return nn.Sequential(model[0], nn.BatchNorm1d(4), model[1], model[2]), *rest


def make_declared():
    model, *rest = make()
    declare(model[0], "weight", Oblique(), project=True)
    return model, *rest


def make_without_symmetry():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return x + self.shift

    return Shift(), nn.functional.cross_entropy, make()[2]


def too_few():
    return make()[:2]


def wrong_model():
    return 1, *make()[1:]


def wrong_loss():
    return make()[0], "mse", make()[2]


def wrong_batches():
    return *make()[:2], 3


def wrong_optimizer():
    return *make(), "adam"


def raises():
    return {}["weights"]


def raises_lines():
    raise ValueError("one\\ntwo")


def exits():
    raise SystemExit(3)


def wrong_shapes():
    model, loss, _ = make()
    return model, loss, [(images()[:, :5], torch.randint(0, 3, (64,)))]


def no_batches():
    return *make()[:2], []


def frozen():
    model, *rest = make()
    return model.requires_grad_(False), *rest


def fails_in_forward():
    class Net(nn.Linear):
        def forward(self, x):
            return self.weights(x)

    return Net(6, 3), *make()[1:]


number = 3
"""
HELPER = "import torch\n\n\ndef images():\n    return torch.randn(64, 6)\n"


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(SOURCE.splitlines(), 1) if text in line)


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    """A folder with the user's files, which leave nothing behind in this process."""
    (tmp_path / "network.py").write_text(SOURCE)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "broken.py").write_text("import torch\nimport not_there\n")
    (tmp_path / "typo.py").write_text("def make(:\n")
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield
    assert sys.path == path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def run(capsys, *arguments):
    assert cli.main(["symmetries", *arguments]) == 0
    return capsys.readouterr()


@pytest.mark.parametrize("target", ["network:make", "network.py:make"])
def test_the_group_and_the_table_are_printed(capsys, target):
    out, err = run(capsys, target)
    group, table = out.split("\n\n")
    assert group.startswith("scaling group of dimension 6, 4 of it non-trivial\n")
    assert "0.weight[row 0] × s, 2.weight[column 0] ÷ s, and 3 more like it" in group
    assert "verified: random elements" in group
    header, first, *_ = table.splitlines()
    assert header.split() == ["SGD", "scaled", "metric", "unit", "norm", "symmetry"]
    assert first.startswith("ignores")
    expected, *stages = err.splitlines()
    assert expected.startswith("17 slices, about 0.01 GiB and ")
    assert stages == ["equations", "factorizing", "verifying"]


def test_users_optimizer_has_a_column(capsys):
    out, _ = run(capsys, "network:make_with_optimizer", "--quiet")
    assert out.split("\n\n")[1].split()[:6] == ["SGD", "scaled", "metric", "unit", "norm", "yours"]


def test_options_reach_the_discovery(capsys, monkeypatch):
    given = {}
    real = factory.discover
    monkeypatch.setattr(
        factory, "discover", lambda *args, **options: given.update(options) or real(*args)
    )
    run(capsys, "network:make", "--quiet", "--seed", "7", "--keep-eps")
    assert (given["seed"], given["keep_eps"]) == (7, True)


def test_classifier_sets_the_papers_metrics(capsys):
    """Columns of the classifier: SM then respects batch normalization's rows in the other layer."""
    out, _ = run(capsys, "network:make_normalized", "--quiet", "--classifier", "3")
    table = out.split("\n\n")[1].splitlines()
    rows = next(line for line in table if "0.weight[row 0] × s" in line)
    assert rows.split()[2] == "respects"
    assert "ε up to 1e-05, taken out" in out


def test_declared_models_are_accepted(capsys):
    out, _ = run(capsys, "network:make_declared", "--quiet", "--classifier", "2")
    assert "dimension 6" in out


def test_model_without_symmetry(capsys):
    out, _ = run(capsys, "network:make_without_symmetry", "--quiet")
    assert out.startswith("scaling group of dimension 0")
    assert "SGD" not in out


def test_quiet_prints_no_progress(capsys):
    assert run(capsys, "network:make", "--quiet").err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["network"], "'network' names no factory: give module:factory or file.py:factory"),
        (["network:"], "names no factory"),
        ([":make"], "names no factory"),
        (["nowhere:make"], "there is no module 'nowhere' in the current directory"),
        (["nowhere.at.all:make"], "there is no module 'nowhere.at.all'"),
        (["nowhere.py:make"], "there is no file nowhere.py"),
        (["broken:make"], "importing broken raised ModuleNotFoundError: No module named 'not_the"),
        (["broken.py:make"], "importing broken.py raised ModuleNotFoundError"),
        (["typo:make"], "importing typo raised SyntaxError: invalid syntax (typo.py, line 1)"),
        (["typo.py:make"], "importing typo.py raised SyntaxError"),
        (["network:made"], "network has no function 'made' (it has: make, make_with_optimizer, "),
        (["network:number"], "network has no function 'number'"),
        (["network.py:made"], "network.py has no function 'made' (it has: make, "),
        (["network:too_few"], "gave 2 things; it must give (model, loss_fn, batches) or (model, "),
        (["helper:images"], "helper:images gave Tensor; it must give"),
        (["network:wrong_model"], "model is of type int; it must be a torch.nn.Module"),
        (["network:wrong_loss"], "loss_fn is of type str; it must be a function"),
        (["network:wrong_batches"], "batches is of type int; it must be an iterable of pairs"),
        (["network:wrong_optimizer"], "make_optimizer is of type str; it must be a function"),
        (
            ["network:raises"],
            f"raised KeyError: 'weights' (network.py, line {line_of('return {}')})",
        ),
        (
            ["network:raises_lines"],
            "network:raises_lines raised ValueError: one two (network.py, l",
        ),
        (["network:exits"], "network:exits raised SystemExit: 3 (network.py, line "),
        (["network:wrong_shapes"], "cannot be found: RuntimeError: mat1 and mat2 shapes"),
        (["network:fails_in_forward"], "AttributeError: 'Net' object has no attribute 'weights'"),
        (["network:no_batches"], "network:no_batches cannot be found: batches is empty"),
        (["network:frozen"], "all 2 parameters of Sequential are frozen"),
        (["network:make", "--classifier", "1"], "classifier='1' is no linear or convolution layer"),
    ],
)
def test_errors_are_one_line(capsys, arguments, message):
    assert cli.main(["symmetries", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("manifoldnet: ")
    assert message in line


def test_classifier_is_checked_before_the_discovery(capsys, monkeypatch):
    monkeypatch.setattr(factory, "discover", lambda *_, **__: pytest.fail("discovered"))
    assert cli.main(["symmetries", "network:make", "--classifier", "fc"]) == 2
    assert "classifier='fc'" in capsys.readouterr().err


def test_file_replaces_no_loaded_module(capsys, tmp_path):
    (tmp_path / "json.py").write_text(SOURCE)
    before = sys.modules["json"]
    run(capsys, "json.py:make", "--quiet")
    assert sys.modules["json"] is before


def test_interruption_promises_no_resume(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(factory, "discover", interrupted)
    assert cli.main(["symmetries", "network:make"]) == 130
    assert capsys.readouterr().err == "\nmanifoldnet: interrupted\n"


def test_command_needs_no_extra(capsys, monkeypatch):
    for name in ("sklearn", "datasets", "matplotlib", "tqdm", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    for package, name in ((symmetry, "factory"), (experiments, "progress")):
        monkeypatch.delattr(package, name)  # imported again, without them
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}")
    out, _ = run(capsys, "network:make", "--quiet")
    assert out.startswith("scaling group of dimension 6")


def test_progress_line_is_erased_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with StatusLine() as status:
        status("equations", 1, 2)
        status("equations", 2, 2)
    clear = "\r\x1b[K"
    assert capsys.readouterr().err == f"{clear}equations 1/2{clear}equations 2/2{clear}"


def test_linear_symmetries(tmp_path, monkeypatch):
    path = tmp_path / "linear_net.py"
    path.write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    layers = [torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)]\n"
        "    batch = (torch.randn(30, 4), torch.randint(2, (30,)))\n"
        "    return torch.nn.Sequential(*layers), torch.nn.CrossEntropyLoss(), [batch]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = factory.find_symmetries(f"{path}:make", kind="linear")
    assert found.explanation is not None
    assert found.explanation.rows[0].verdicts["SGD"] == "ignores"
    text = str(found)
    assert "GL(3) between 0 and 1" in text
    assert "looked for: matrices on rows and on columns of each parameter, translations" in text
    assert "not looked for: maps between parameters, permutations" in text
