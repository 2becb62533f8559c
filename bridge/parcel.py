"""Wheels of what is installed here, stirbar and what it needs, so that a unit of the same kind needs no network.

A wheel is an installed tree with a list of its files: what pip once unpacked here is packed again. That fits machines
of the same architecture and Python; for others the operator names a package (`--package`).
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.metadata
import platform
import re
import sys
import threading
import zipfile
from pathlib import Path
from typing import NamedTuple

from stirbar.core.version import VERSION

NAME = "stirbar"
ROOMS = ("core", "rt", "bridge", "web")
SOURCES = {".c", ".h", ".pyx", ".pyc"}  # what a wheel of ours leaves out
NOT_PACKED = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}  # said by pip of one installation
EPOCH = (1980, 1, 1, 0, 0, 0)  # one tree makes one file, byte by byte
EXECUTABLE = 0o100755 << 16
PLAIN = 0o100644 << 16


class ParcelError(Exception):
    """Nothing fits that could be sent to a host; the text says what is missing, `remedy` what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


class Parcel(NamedTuple):
    """What a host gets, and its digest; `is_own`: it was packed from the tree that runs here."""

    package: Path
    digest: str
    is_own: bool

    @property
    def is_source(self) -> bool:
        """Whether the host has to compile it."""
        return self.package.suffix == ".gz"


class Parcels:
    """Chooses for each kind of host among the packages that were named and the tree that is installed here.

    Synchronization: any thread.
    """

    def __init__(self, directory: Path, packages: list[Path], wheels: Path | None) -> None:
        self._directory = directory
        self._packages = packages
        self._wheels = wheels
        self._own: Path | None = None
        self._lock = threading.Lock()

    def choose(self, python: str, machines: list[str]) -> Parcel:
        """For a host of this Python ("3.11") and these names of its architecture. Raises ParcelError."""
        with self._lock:
            return self._choose(python, machines)

    def beside(self, parcel: Parcel) -> tuple[Path, ...]:
        """Wheels of what a package needs; none where the host has to fetch them itself."""
        if self._wheels:
            return tuple(sorted(self._wheels.glob("*.whl")))
        with self._lock:
            return self._needed() if parcel.is_own else ()

    def _choose(self, python: str, machines: list[str]) -> Parcel:
        tag = f"cp{python.replace('.', '')}"
        fits = [path for path in self._packages if path.suffix == ".gz" or _fits(path.name, tag, machines)]
        if not fits and self._is_like_this(python, machines):
            fits = [self._of_this_tree()]
        if not fits:
            raise ParcelError(
                f"no package for {tag} on {machines[0]}: this leader is {own_tag()} on {platform.machine()}",
                "give one with --package: a wheel for that machine, or the source distribution, which it compiles",
            )
        best = min(fits, key=lambda path: path.suffix == ".gz")  # sources only where there is no wheel
        return Parcel(best, hashlib.sha256(best.read_bytes()).hexdigest(), best == self._own)

    def _is_like_this(self, python: str, machines: list[str]) -> bool:
        return python == "{}.{}".format(*sys.version_info[:2]) and platform.machine() in machines

    def _of_this_tree(self) -> Path:
        if self._own is None:
            self._own = own_wheel(self._directory)
        return self._own

    def _needed(self) -> tuple[Path, ...]:
        """Wheels of what stirbar needs; none where this system has it from elsewhere than pip."""
        try:
            return tuple(wheel_of(name, self._directory) for name in needed_by(NAME))
        except ParcelError:
            return ()


def own_tag() -> str:
    """This Python's name in a wheel's."""
    return "cp{}{}".format(*sys.version_info[:2])


def _fits(name: str, tag: str, machines: list[str]) -> bool:
    parts = name.removesuffix(".whl").split("-")
    if len(parts) < 5 or tag not in parts[-3].split("."):
        return False
    return any(one.endswith(f"_{machine}") for one in parts[-1].split(".") for machine in machines)


def own_wheel(directory: Path) -> Path:
    """A wheel of stirbar as it runs here, whether it was installed or is used from its sources. Raises ParcelError."""
    about = _distribution(NAME)
    files: dict[str, Path] = {}
    for room in ("", *ROOMS):
        module = importlib.import_module(f"{NAME}.{room}".rstrip("."))
        folder = Path(module.__path__[0])
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            elsewhere = "_top" in inside.parts if room else len(inside.parts) > 1
            if path.is_file() and path.suffix not in SOURCES and not elsewhere:
                files[f"{NAME}/{room}/{inside}".replace("//", "/")] = path
    tag = f"{own_tag()}-{own_tag()}-linux_{platform.machine()}"
    info = f"{NAME}-{VERSION}.dist-info"
    texts = {
        f"{info}/METADATA": about.read_text("METADATA") or about.read_text("PKG-INFO") or "",  # of sources
        f"{info}/entry_points.txt": about.read_text("entry_points.txt") or "",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: stirbar\nRoot-Is-Purelib: false\nTag: {tag}\n",
    }
    return _pack(directory / f"{NAME}-{VERSION}-{tag}.whl", files, texts)


def wheel_of(name: str, directory: Path) -> Path:
    """A wheel of an installed distribution, made once. Raises ParcelError where pip has left no list of its files."""
    about = _distribution(name)
    tags = re.findall(r"^Tag: (\S+)$", about.read_text("WHEEL") or "", re.MULTILINE)
    if not about.files or not tags:
        raise ParcelError(f"{name} was not installed by pip", "give its wheel in the directory of --wheels")
    joined = "-".join(".".join(dict.fromkeys(part)) for part in zip(*(tag.split("-") for tag in tags), strict=True))
    path = directory / f"{re.sub('[-.]+', '_', about.metadata['Name'])}-{about.version}-{joined}.whl"
    if path.exists():
        return path
    files = {
        str(file): Path(str(file.locate()))
        for file in about.files
        if file.parts[0] != ".." and file.suffix not in (".pyc",) and file.name not in NOT_PACKED
    }
    return _pack(path, files, {})


def needed_by(name: str) -> list[str]:
    """The distributions that one needs, with what they need, as far as they are for this Python."""
    found: dict[str, None] = {}
    for requirement in importlib.metadata.requires(name) or []:
        wanted, _, marker = requirement.partition(";")
        one = re.match(r"[\w.-]+", wanted)
        if one is None or "extra" in marker:
            continue
        try:
            importlib.metadata.version(one[0])
        except importlib.metadata.PackageNotFoundError:
            if marker:
                continue  # for another Python or system
            raise ParcelError(f"{one[0]} is not installed here", "pip install it, or give --wheels") from None
        found[one[0]] = None
        found |= dict.fromkeys(needed_by(one[0]))
    return list(found)


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ParcelError(f"{name} runs here without having been installed", "give a package with --package") from None


def _pack(path: Path, files: dict[str, Path], texts: dict[str, str]) -> Path:
    """Write a wheel: files by their names in it, texts that are made now, and RECORD."""
    info = next(name.split("/")[0] for name in (*texts, *files) if ".dist-info/" in name)
    record = []
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as wheel:

        def add(name: str, content: bytes, attributes: int = PLAIN) -> None:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = attributes
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            record.append(f"{name},sha256={digest},{len(content)}\n")

        for name, source in sorted(files.items()):
            add(name, source.read_bytes(), EXECUTABLE if source.stat().st_mode & 0o100 else PLAIN)
        for name, text in sorted(texts.items()):
            add(name, text.encode())
        listed = f"{info}/RECORD"
        add(listed, "".join([*record, f"{listed},,\n"]).encode())
    temporary.replace(path)
    return path
