"""notebooks/build.py as a module: it stands in no package."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "notebooks" / "build.py"

_spec = importlib.util.spec_from_file_location("build_notebooks", SCRIPT)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
