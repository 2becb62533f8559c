"""Builds stirbar: four folders become one package, and pyx/ becomes compiled extensions.

Cython resolves `cimport stirbar.rt.x` by directory, and knows nothing of package_dir; mypy and IDEs have the same
blind spot. build/view is a generated link farm that shows them the layout that the installed package has.
"""

import hashlib
import os
import runpy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NAME = "stirbar"
FOLDERS = {"core": "core", "rt": "pyx", "bridge": "bridge", "web": "web"}  # stirbar.<key> lives in <value>/
TOP_FILES = ("__init__.py", "py.typed")  # stirbar itself, from core/_top/
# -g0 and -O2 come after Python's own -g -O3; no contraction, so that a replay is bit-identical
COMPILE_ARGS = ["-O2", "-g0", "-ffp-contract=off", "-fvisibility=hidden"]
# small, and nothing of it is loaded later: it runs exactly when the file system may be stuck
GUARD_SOURCES = sorted(str(path) for path in Path("pyx/guard").glob("*.c"))
GUARD_COMPILE_ARGS = ["-Os", "-g0", "-ffunction-sections", "-fdata-sections"]
GUARD_LINK_ARGS = ["-s", "-Wl,--gc-sections", "-pthread"]
VERSION = runpy.run_path("core/version.py")["VERSION"]


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


class BuildWithGuard(build_ext):
    """Builds the extensions, one on each processor, and, with the same compiler, the guard: a program of its own, data
    of stirbar.rt."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or len(os.sched_getaffinity(0))

    def run(self) -> None:
        super().run()
        for built, in_source in self.guard_files().items():
            self.build_guard(Path(in_source if self.inplace else built))

    def guard_files(self) -> dict[str, str]:
        """Where the guard is built to, and where it is when the sources are used in place."""
        inside = Path("guard") / "stirbar-guard"
        built = Path(self.build_lib) / NAME / "rt" / inside
        return {str(built): str(Path(self.get_finalized_command("build_py").get_package_dir(f"{NAME}.rt")) / inside)}

    def build_guard(self, target: Path) -> None:
        """Compile and link the guard, statically where this system has a static C library."""
        headers = [str(path) for path in Path("pyx/guard").glob("*.h")]
        newest = max(os.stat(source).st_mtime for source in (*GUARD_SOURCES, *headers, "core/version.py"))
        if not self.force and target.exists() and target.stat().st_mtime >= newest:
            return
        objects = self.compiler.compile(
            GUARD_SOURCES,
            output_dir=self.build_temp,
            macros=[("STIRBAR_VERSION", f'"{VERSION}"')],
            extra_postargs=GUARD_COMPILE_ARGS,
        )
        self.mkpath(str(target.parent))
        try:
            self.compiler.link_executable(objects, str(target), extra_postargs=[*GUARD_LINK_ARGS, "-static"])
        except Exception as error:  # each compiler class has its own LinkError
            print(f"{target.name}: not linked statically ({error}): dynamically instead")
            self.compiler.link_executable(objects, str(target), extra_postargs=GUARD_LINK_ARGS)

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), *self.guard_files()]

    def get_output_mapping(self) -> dict[str, str]:
        return {**super().get_output_mapping(), **(self.guard_files() if self.inplace else {})}


PACKAGE_DIR = {NAME: "core/_top"} | {f"{NAME}.{key}": folder for key, folder in FOLDERS.items()}

setup(
    version=VERSION,
    cmdclass={"build_ext": BuildWithGuard},
    packages=list(PACKAGE_DIR),
    package_dir=PACKAGE_DIR,
    include_package_data=False,
    package_data={
        NAME: ["py.typed"],
        f"{NAME}.core": ["config.example.ini", "deploy/*", "hardware/*.ini"],
        f"{NAME}.rt": ["*.pxd", "*.pyi"],
        f"{NAME}.bridge": ["migrations/*.sql", "migrations/postgres/*.sql"],
        f"{NAME}.web": ["static/*", "static/vendor/*", "templates/*"],
    },
    exclude_package_data={"": ["*.c", "*.pyx"]},
    ext_modules=cythonize(
        extensions(),
        language_level=3,
        include_path=[make_view()],
        force=is_stale(),
        nthreads=len(os.sched_getaffinity(0)),
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
