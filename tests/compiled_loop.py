"""What the loop's threads can reach in the generated C: a call graph from the compiler, and Cython's own scores.

The call graph is GCC's (`-fcallgraph-info`, without optimisation: inline functions and expanded macros are calls in
it). Calls through pointers are in it as one anonymous node; any function whose address the module stores may be behind
it, so all of those are roots.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sysconfig

from Cython.Compiler import Annotate
from Cython.Compiler.Main import compile as cython_compile

DIRECTIVES = {
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
}
INDIRECT = "__indirect_call"
_EDGE = re.compile(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')
_NODE = re.compile(r'node: \{ title: "([^"]+)"(.*)\}')
# a name that is not called, declared or defined here: its address is taken
_ADDRESS = re.compile(r"(__pyx_f_\w+)(?!\w)(?!\s*\()")


class Compiled:
    """A Cython module as C: `scores` is {file: {line: Cython's score}}, `calls` {function: functions that it calls},
    `defined` the functions whose body the compiler saw."""

    def __init__(self, source: pathlib.Path, directory: pathlib.Path, include: pathlib.Path) -> None:
        self.c_file = directory / f"{source.stem}.c"
        self.scores = _cythonize(source, self.c_file, include)
        self.calls, self.defined = _call_graph(self.c_file)

    def address_taken(self) -> set[str]:
        """C functions of ours that someone may call through a pointer; those in a vtable are for the host only."""
        text = re.sub(r"/\*.*?\*/|\"(?:\\.|[^\"\\])*\"", " ", self.c_file.read_text(), flags=re.DOTALL)
        return {
            name
            for line in text.splitlines()
            if not line.lstrip().startswith(("__pyx_vtable_", "#"))
            for name in _ADDRESS.findall(line)
        }

    def reachable(self, roots: set[str]) -> set[str]:
        """Everything that the roots call, directly or not, with themselves."""
        seen, waiting = set(roots), list(roots)
        while waiting:
            for called in self.calls.get(waiting.pop(), ()):
                if called not in seen:
                    seen.add(called)
                    waiting.append(called)
        return seen


def python_symbols(names: set[str]) -> set[str]:
    """Names that belong to Python's C API or to Cython's runtime."""
    return {name for name in names if re.match(r"_?Py[A-Z_]|__Pyx_|__pyx_(?!f_|fuse_)|_Py", name)}


def _cythonize(source: pathlib.Path, target: pathlib.Path, include: pathlib.Path) -> dict[str, dict[int, int]]:
    scores: dict[str, dict[int, int]] = {}

    def keep(writer, source_filename, target_filename, coverage_xml=None) -> None:
        for file, lines in writer.code.items():
            if file is not None:
                scores[pathlib.Path(file).name] = {number: _score(code) for number, code in lines.items()}

    saved = Annotate.AnnotationCCodeWriter.save_annotation
    Annotate.AnnotationCCodeWriter.save_annotation = keep
    try:
        result = cython_compile(
            [str(source)],
            annotate=True,
            output_file=str(target),
            include_path=[str(include)],
            language_level=3,
            compiler_directives=DIRECTIVES,
        )
    finally:
        Annotate.AnnotationCCodeWriter.save_annotation = saved
    assert result.num_errors == 0
    return scores


def _score(code: str) -> int:
    """How often Cython sees Python in the C code of a line: 0 is a white line in its annotated HTML."""
    found: list[str | None] = []

    def count(match: re.Match[str]) -> str:
        found.append(match.lastgroup)
        return ""

    Annotate._parse_code(count, code)
    return len(found)


def _call_graph(c_file: pathlib.Path) -> tuple[dict[str, set[str]], set[str]]:
    compiler = (sysconfig.get_config_var("CC") or "gcc").split()[0]
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(
        [
            compiler,
            "-O0",
            "-w",
            "-fPIC",
            "-fcallgraph-info",
            include,
            "-c",
            c_file.name,
            "-o",
            f"{c_file.stem}.o",
        ],
        cwd=c_file.parent,
        check=True,
    )
    text = c_file.with_suffix(".ci").read_text()
    calls: dict[str, set[str]] = {}
    for caller, called in _EDGE.findall(text):
        calls.setdefault(caller.rpartition(":")[2], set()).add(called.rpartition(":")[2])
    # undefined functions are drawn as ellipses
    defined = {title.rpartition(":")[2] for title, rest in _NODE.findall(text) if "ellipse" not in rest}
    return calls, defined
