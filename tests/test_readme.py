"""README.md and the documentation's pages do what they say.

Every ```python block is run as it is written, the blocks of one page one after the other in one
namespace. Every command of a ```console block (a line that begins with `$ `) is checked, not run:
`manifoldnet …` parses, `make …` has its targets, `python …` its script
and options, `pip install …[extra]` its extras. Output is
what stands in ```text blocks, and in a ```console block on lines that are no commands.

A block that includes a script of docs/recipes is left to tests/recipes, which runs the script.
"""

import re
import shlex
import sys
import textwrap
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from manifoldnet.geometry import manifold

ROOT = Path(__file__).parents[1]
# Pages of docs/notebooks are made by running the notebooks, which has tested them.
MADE = ROOT / "docs" / "notebooks"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if MADE not in path.parents),
]

FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^\n]*)\n"
    r"(?P<body>.*?)^[ \t]*(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
SCRIPT = re.compile(r'--8<-- "docs/recipes/\w+\.py"\n')
# Names under which a block would escape the checks.
UNCHECKED = {"": "text", "py": "python", "pycon": "python"} | dict.fromkeys(
    ["bash", "sh", "shell", "zsh"], "console"
)


class Block(NamedTuple):
    """The text between two fences."""

    language: str
    line: int  # of its first line in the page
    body: str


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body")) + 1
        language = (match["info"].split() or [""])[0]
        yield Block(language, line, textwrap.dedent(match["body"]))


def commands(block: Block) -> Iterator[tuple[int, list[str]]]:
    """The commands of a console block, as words, each with the line it begins on."""
    lines = enumerate(block.body.splitlines(), block.line)
    for number, line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command = command[:-1] + " " + next(lines)[1]
            words = shlex.split(command, comments=True)
            while words and re.match(r"\w+=", words[0]):  # VARIABLE=value in front of it
                words.pop(0)
            if words:
                yield number, words


def run(path: Path) -> int:
    """Runs the Python blocks of a page in one namespace; how many there were."""
    module = types.ModuleType("example")  # a real module, so that what it defines can be pickled
    sys.modules[module.__name__] = module
    count = 0
    try:
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.language == "python" and not SCRIPT.fullmatch(block.body):
                # Empty lines in front: a traceback names the line of the page.
                source = "\n" * (block.line - 1) + block.body
                exec(compile(source, str(path), "exec"), vars(module))
                count += 1
    finally:
        del sys.modules[module.__name__]
    return count


def check(words: list[str]) -> None:
    """Raises if a command names something that is not there."""
    program, *arguments = words
    if program == "manifoldnet":
        from manifoldnet import cli

        try:
            cli._parser().parse_args(arguments)
        except SystemExit as end:  # 0 is --help
            if end.code != 0:
                raise ValueError("the command line refuses it") from end
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
        missing = {a for a in arguments if "=" not in a} - targets
        if missing:
            raise ValueError(f"the Makefile has no target {sorted(missing)}")
    elif program == "python" and arguments[0].endswith(".py"):
        script = ROOT / arguments[0]
        if not script.is_file():
            raise ValueError(f"there is no script {arguments[0]}")
        text = script.read_text(encoding="utf-8")
        missing = {a for a in arguments if a.startswith("--") and f'"{a}"' not in text}
        if missing:
            raise ValueError(f"{arguments[0]} has no option {sorted(missing)}")
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extras in re.findall(r"(?:manifoldnet|\.)\[(.*?)\]", " ".join(arguments)):
            missing = set(extras.split(",")) - set(project["optional-dependencies"])
            if missing:
                raise ValueError(f"there is no extra {sorted(missing)}")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Names that other tests of this process have registered are no reader's.
    for known in ("_MANIFOLDS", "RETRACTIONS"):
        names = getattr(manifold, known)
        ours = {n: c for n, c in names.items() if c.__module__.startswith("manifoldnet.")}
        monkeypatch.setattr(manifold, known, ours)
    run(path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8")):
        assert block.language not in UNCHECKED, (
            f"{path.name}:{block.line - 1}: call the block {UNCHECKED[block.language]!r}, "
            "so that it is known what to do with it"
        )
        if block.language == "console":
            for line, words in commands(block):
                try:
                    check(words)
                except ValueError as error:
                    pytest.fail(f"{path.name}:{line}: {shlex.join(words)}: {error}")


def test_the_readme_has_examples_of_both_kinds() -> None:
    languages = {block.language for block in blocks(PAGES[0].read_text(encoding="utf-8"))}
    assert languages >= {"python", "console"}


PAGE = """\
# A page

```python
from pickle import dumps, loads
class A: pass
```

- in a list, sharing the namespace:

    ```python title="more"
    assert type(loads(dumps(A()))) is A
    ```

```text
print(1 / 0)
```

```python
--8<-- "docs/recipes/any.py"
```

```console
$ FLAG=1 manifoldnet compare \\
    --seeds 2  # a comment
un 0.02
$ make demo
```
"""


def test_blocks_of_a_page_share_a_namespace(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert run(page) == 2
    assert "example" not in sys.modules


def test_other_snippets_are_no_script(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('```python\n--8<-- "docs/figures.py"\n```\n')
    with pytest.raises(TypeError):
        run(page)


def test_a_failing_example_is_named_by_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nx = 1\nx / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(page)
    assert caught.traceback[-1].lineno + 1 == 5


def test_commands_are_read_from_console_blocks() -> None:
    *_, console = blocks(PAGE)
    assert list(commands(console)) == [
        (23, ["manifoldnet", "compare", "--seeds", "2"]),
        (26, ["make", "demo"]),
    ]


@pytest.mark.parametrize(
    "command",
    [
        "manifoldnet train --no-such-option",
        "manifoldnet fly",
        "make coffee",
        "python docs/nothing.py",
        "python docs/benchmarks.py --fast",
        "pip install '.[spam]'",
        "pip install 'manifoldnet[docs,spam]'",
    ],
)
def test_a_wrong_command_is_seen(command: str) -> None:
    with pytest.raises(ValueError, match=r"refuses|no (target|extra|script|option)"):
        check(shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "manifoldnet train --epochs 3",
        "manifoldnet compare --help",
        "make test",
        "make demo PYTHON=python3.12",
        "python docs/benchmarks.py --threads 2",
        "pip install -e '.[experiments,dev]'",
        "git clone anything",
    ],
)
def test_a_right_command_passes(command: str) -> None:
    check(shlex.split(command))
