"""Run the notebooks, and write them as pages of the documentation.

    python notebooks/build.py           run those that changed, into docs/notebooks
    python notebooks/build.py --pair    write the .ipynb of each, from its .py

    notebooks/NAME.py  ->  a clean kernel  ->  docs/notebooks/NAME.md, NAME/1.png, …

The .py is the source. A cell that raises, or writes to stderr (a warning), fails the build. A stamp
in .cache/notebooks, over all that goes in and all that came out, says whether a page is current.

mkdocs-jupyter is not used: by its source (0.26) its cache does not see that the package changed.
"""

import argparse
import asyncio
import base64
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError

CELL_SECONDS = 300  # far more than any cell takes: it ends what hangs

# What all pages depend on, besides their notebook. Notebooks read no other records.
SHARED = (
    "constraints.txt",
    "docs/results/symmetry-paper/records.jsonl.gz",
    "manifoldnet/**/*.py",
    "notebooks/build.py",
    "notebooks/matplotlibrc",
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class NotebookError(Exception):
    """An error in a cell of a notebook."""


@dataclass(frozen=True)
class Project:
    """The paths of the notebooks and their outputs, below the root of the repository."""

    root: Path

    @property
    def sources(self) -> list[Path]:
        """The notebooks; what begins with no digit is none."""
        return sorted((self.root / "notebooks").glob("[0-9]*.py"))

    @property
    def pages(self) -> Path:
        return self.root / "docs" / "notebooks"

    def made(self, name: str) -> list[Path]:
        """The page of a notebook and its pictures, as far as they are there."""
        return sorted([*self.pages.glob(f"{name}.md"), *self.pages.glob(f"{name}/*")])

    def stamp_path(self, name: str) -> Path:
        return self.root / ".cache" / "notebooks" / name

    def stamp(self, source: Path) -> str:
        """A hash of everything that a page depends on, and of the page."""
        digest = hashlib.sha256(sys.version.encode())
        shared = sorted(path for pattern in SHARED for path in self.root.glob(pattern))
        for path in (source, *shared, *self.made(source.stem)):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(self.root)} {content}\n".encode())
        return digest.hexdigest()

    def is_current(self, source: Path) -> bool:
        stamp = self.stamp_path(source.stem)
        return stamp.is_file() and stamp.read_text() == self.stamp(source)


def read(source: Path) -> nbformat.NotebookNode:
    """A notebook from its text."""
    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # jupytext draws them at random
    return notebook


def paired(source: Path) -> str:
    """The text of the .ipynb beside a .py: the same cells, no outputs."""
    return nbformat.writes(read(source), version=4) + "\n"


def numbered(notebook: nbformat.NotebookNode) -> Iterator[tuple[int, str, nbformat.NotebookNode]]:
    """The code cells as (index, what a message calls it, cell)."""
    count = 0
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            count += 1
            yield index, f"code cell {count} ({cell.source.splitlines()[0]})", cell


async def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs all cells in a kernel of their own; their outputs are then in the notebook.

    Raises:
        NotebookError: when a cell raises, hangs, kills its kernel, or writes to stderr.
    """
    with TemporaryDirectory() as place:
        client = NotebookClient(
            notebook,
            # Sockets that are files: no port is opened.
            AsyncKernelManager(
                kernel_name="python3", transport="ipc", connection_file=f"{place}/kernel.json"
            ),
            timeout=CELL_SECONDS,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        # One thread, so that sums keep their order; the reader's settings of IPython stay out.
        settings = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "IPYTHONDIR": place,
            "HYPOTHESIS_STORAGE_DIRECTORY": place,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        async with client.async_setup_kernel(env=os.environ | settings, cleanup_kc=True):
            await run_cells(client)


async def run_cells(client: NotebookClient) -> None:
    """Runs the cells of a notebook, one after the other; errors are those of `run`."""
    for index, where, cell in numbered(client.nb):
        try:
            await client.async_execute_cell(cell, index)
        except CellExecutionError as error:
            trace = ANSI.sub("", error.traceback)
            raise NotebookError(f"{where}: {error.ename}: {error.evalue}\n{trace}") from error
        except (CellControlSignal, DeadKernelError) as error:
            raise NotebookError(f"{where}: {error}") from error
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                raise NotebookError(f"{where}: it writes to stderr: {output.text}")


def fenced(language: str, text: str) -> str:
    """A block of code, between fences that it does not contain."""
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def render(notebook: nbformat.NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook that was run, and its pictures by file name.

    Raises:
        NotebookError: for a picture without words: its cell needs `# %% alt="…"`.
    """
    pictures: dict[str, bytes] = {}
    names = {index: where for index, where, _ in numbered(notebook)}
    blocks = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            # Links lead from the notebook's folder to docs/, and to other notebooks.
            text = cell.source.replace("](../docs/", "](../")
            blocks.append(re.sub(r"\]\(([^/()]+)\.ipynb\)", r"](\1.md)", text))
            continue
        blocks.append(fenced("python", cell.source))
        for output in cell.outputs:
            data = {} if output.output_type == "stream" else output.data
            if "image/png" in data:
                if "alt" not in cell.metadata:
                    raise NotebookError(
                        f'{names[index]}: its picture has no words: write `# %% alt="…"` above it'
                    )
                file = f"{name}/{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                blocks.append(f"![{cell.metadata.alt}]({file})")
            elif "text/markdown" in data:
                blocks.append(data["text/markdown"])
            else:
                blocks.append(fenced("text", data.get("text/plain") or output.text))
    blocks.append(
        f"*This page is the notebook `notebooks/{name}.ipynb` with its output when the "
        "site was built.*"
    )
    return "\n\n".join(blocks) + "\n", pictures


async def build(project: Project, source: Path) -> bool:
    """Runs one notebook, and writes its page, pictures and stamp; or says why it failed."""
    name, start = source.stem, time.perf_counter()
    try:
        notebook = read(source)
        await run(notebook, source.parent)
        text, pictures = render(notebook, name)
    except NotebookError as error:
        print(f"notebooks/{source.name}: {error}", file=sys.stderr, flush=True)
        return False
    (project.pages / name).mkdir(parents=True, exist_ok=True)
    for old in project.made(name):
        old.unlink()
    for file, content in pictures.items():
        (project.pages / file).write_bytes(content)
    (project.pages / f"{name}.md").write_text(text, encoding="utf-8")
    stamp = project.stamp_path(name)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(project.stamp(source))
    print(f"notebooks/{source.name}: {time.perf_counter() - start:.1f} s", flush=True)
    return True


async def build_all(project: Project, jobs: int) -> bool:
    """Builds what is not current, `jobs` at a time; whether all of it went well."""
    names = {source.stem for source in project.sources}
    for path in project.pages.glob("*"):
        if path.stem not in names:  # of a notebook that is gone
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    todo = [source for source in project.sources if not project.is_current(source)]
    if len(todo) < len(names):
        print(f"notebooks: {len(names) - len(todo)} of {len(names)} pages are up to date")
    turn = asyncio.Semaphore(jobs)

    async def one(source: Path) -> bool:
        async with turn:
            return await build(project, source)

    return all(await asyncio.gather(*map(one, todo)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks, and write them as pages.")
    parser.add_argument("--pair", action="store_true", help="write the .ipynb files, run nothing")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time (2)")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[1], help="of the project"
    )
    options = parser.parse_args(arguments)
    project = Project(options.root.resolve())
    if options.pair:
        for source in project.sources:
            source.with_suffix(".ipynb").write_text(paired(source), encoding="utf-8")
        return 0
    return 0 if asyncio.run(build_all(project, options.jobs)) else 1


if __name__ == "__main__":
    sys.exit(main())
