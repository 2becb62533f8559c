"""Shared fixtures; lets `python setup.py build_ext --inplace && pytest` run with nothing installed."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]

if importlib.util.find_spec("stirbar") is None:
    sys.path.insert(0, str(ROOT / "build" / "view"))
