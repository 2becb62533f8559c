"""Builds stirbar: four folders become one package, and pyx/ becomes compiled extensions.

Cython resolves `cimport stirbar.rt.x` by directory, and knows nothing of package_dir; mypy and IDEs have the same
blind spot. build/view is a generated link farm that shows them the layout that the installed package has.
"""

import hashlib
import runpy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

NAME = "stirbar"
FOLDERS = {"core": "core", "rt": "pyx", "bridge": "bridge", "web": "web"}  # stirbar.<key> lives in <value>/
TOP_FILES = ("__init__.py", "py.typed")  # stirbar itself, from core/_top/
# -g0 and -O2 come after Python's own -g -O3; no contraction, so that a replay is bit-identical
COMPILE_ARGS = ["-O2", "-g0", "-ffp-contract=off", "-fvisibility=hidden"]


def make_view() -> str:
    """Create build/view/stirbar/... as links into the source folders; return its path for the include list."""
    top = Path("build/view") / NAME
    top.mkdir(parents=True, exist_ok=True)
    links = FOLDERS | {name: f"core/_top/{name}" for name in TOP_FILES}
    for link, target in links.items():
        if not (top / link).is_symlink():
            (top / link).symlink_to(Path("../../..") / target)
    return str(top.parent)


def build_id() -> str:
    """Names the compiled code by its sources: a recording says which one made it."""
    digest = hashlib.sha256()
    for source in sorted(path for path in Path("pyx").iterdir() if path.suffix in (".pxd", ".pyx")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def extensions() -> list[Extension]:
    """One extension per .pyx; the worker loads only `loop`, the *_arrays modules are for NumPy users."""
    macros = [("STIRBAR_BUILD_ID", f'"{build_id()}"')]
    return [
        Extension(
            f"{NAME}.rt.{source.stem}",
            [str(source)],
            define_macros=macros,
            depends=[str(contract) for contract in Path("pyx").glob("*.pxd")],
            extra_compile_args=COMPILE_ARGS,
            extra_link_args=["-s"],
            libraries=["m", "pthread"],
        )
        for source in sorted(Path("pyx").glob("*.pyx"))
    ]


def is_stale() -> bool:
    """Whether a .pxd is newer than the C made from it: cythonize does not look behind the links of the view."""
    newest = max(path.stat().st_mtime for path in Path("pyx").glob("*.pxd"))
    return any(path.stat().st_mtime < newest for path in Path("build/cy/pyx").glob("*.c"))


PACKAGE_DIR = {NAME: "core/_top"} | {f"{NAME}.{key}": folder for key, folder in FOLDERS.items()}

setup(
    version=runpy.run_path("core/version.py")["VERSION"],
    packages=list(PACKAGE_DIR),
    package_dir=PACKAGE_DIR,
    include_package_data=False,
    package_data={
        NAME: ["py.typed"],
        f"{NAME}.core": ["config.example.ini", "deploy/*", "hardware/*.ini"],
        f"{NAME}.rt": ["*.pxd", "*.pyi"],
        f"{NAME}.bridge": ["migrations/*.sql"],
        f"{NAME}.web": ["static/*", "static/vendor/*", "templates/*"],
    },
    exclude_package_data={"": ["*.c", "*.pyx"]},
    ext_modules=cythonize(
        extensions(),
        language_level=3,
        include_path=[make_view()],
        force=is_stale(),
        build_dir="build/cy",
        compiler_directives={
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
    ),
)
