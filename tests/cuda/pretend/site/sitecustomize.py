"""Python runs this at its start where the folder is on PYTHONPATH: every program then has the pretend device."""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class BeforeCupy(MetaPathFinder):
    """Installs the pretend device when CuPy is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        if name in ("cupy", "cupy_backends"):
            sys.meta_path.remove(self)
            from tests.cuda import pretend

            pretend.install()


sys.path.insert(1, str(Path(__file__).parents[4]))
sys.meta_path.insert(0, BeforeCupy())
