"""Programs in processes of their own that have imported torch already, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Forks for each line of stdin, and answers with a line.
_SERVER = """
import json, os, sys, tempfile, traceback, warnings
import numpy, torch

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    asked = json.loads(line)
    written = [tempfile.TemporaryFile() for _ in range(2)]
    child = os.fork()
    if not child:
        for number, file in enumerate(written, 1):
            os.dup2(file.fileno(), number)
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.path[:] = ["", *asked["path"], *sys.path[1:]]
        sys.argv[1:] = asked["arguments"]
        warnings.simplefilter(asked["warnings"], getattr(__builtins__, asked["category"]))
        code = 1
        try:
            exec(compile(asked["program"], "<string>", "exec"), {"__name__": "__main__"})
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    for file in written:
        file.seek(0)
    answer = [os.waitstatus_to_exitcode(status), *(file.read().decode() for file in written)]
    print(json.dumps(answer), file=answers, flush=True)
"""


class Forks:
    """A process that has torch and numpy, and nothing of manifoldnet; it forks for each program."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __call__(
        self,
        program: str,
        *arguments: str,
        folder: Path = ROOT,
        path: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        warnings: str = "ignore",
        category: str = "Warning",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as ``python -c`` does, with folders in front of ``sys.path``."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", _SERVER],  # torch itself warns of nothing
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        asked = {
            "program": program,
            "arguments": arguments,
            "folder": str(folder),
            "path": path,
            "environment": dict(environment or {}),
            "warnings": warnings,
            "category": category,
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(asked), file=self._server.stdin, flush=True)
        code, out, err = json.loads(self._server.stdout.readline())
        return subprocess.CompletedProcess([program, *arguments], code, out, err)

    def end(self) -> None:
        """End the process, if it was started."""
        if self._server is not None:
            self._server.communicate()
