"""Conversions of a recording as a table for other programs: NumPy, Parquet or CSV.

Columns: `monotonic_ns`, `wall_ns` (end of the conversion; the unit's CLOCK_MONOTONIC, Unix time), `volts`, `code`,
`index` (of the converter's conversions), `channel` (1..4), `phase` (0 off, 1 on, 2 edge: not used), `clipped`.

Synchronization: none; one thread.
"""

from __future__ import annotations

import os

from stirbar.core.recording import CONVERSION_DTYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import BinaryIO

    import numpy

NPY_HEADER_BYTES = 512


class ExportError(Exception):
    """Why a recording cannot be exported, and what to do; one sentence."""


def write_npy(path: str, blocks: Iterable[numpy.ndarray]) -> int:
    """One structured array of CONVERSION_DTYPE; `numpy.load(path, mmap_mode="r")` maps it. Returns how many rows."""
    import numpy

    count = 0
    with open(path, "xb") as file:
        _npy_header(file, 0)
        for block in blocks:
            file.write(numpy.ascontiguousarray(block).tobytes())
            count += len(block)
        file.seek(0)
        _npy_header(file, count)
    return count


def _npy_header(file: BinaryIO, count: int) -> None:
    """The header of format 1.0, padded to the same length whatever the count."""
    text = repr({"descr": CONVERSION_DTYPE, "fortran_order": False, "shape": (count,)}).encode()
    length = NPY_HEADER_BYTES - 10
    file.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n")


def write_csv(path: str, blocks: Iterable[numpy.ndarray]) -> int:
    """One line a conversion, the first names the columns. Returns how many rows."""
    count = 0
    with open(path, "x", newline="") as file:
        file.write(",".join(name for name, _ in CONVERSION_DTYPE) + "\n")
        for block in blocks:
            file.writelines(
                f"{a},{b},{volts:.9g},{c},{d},{e},{f},{g}\n" for a, b, volts, c, d, e, f, g in block.tolist()
            )
            count += len(block)
    return count


def write_parquet(path: str, blocks: Iterable[numpy.ndarray]) -> int:
    """One row a conversion, zstd. Returns how many rows. Raises ExportError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ExportError("Parquet needs pyarrow: pip install 'stirbar[parquet]', or export npy or csv") from None
    kinds = {
        "<i8": pyarrow.int64(),
        "<f8": pyarrow.float64(),
        "<i4": pyarrow.int32(),
        "<u4": pyarrow.uint32(),
        "u1": pyarrow.uint8(),
    }
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in CONVERSION_DTYPE])
    count = 0
    with open(path, "xb") as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in blocks:
            columns = [pyarrow.array(block[name]) for name in schema.names]
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
            count += len(block)
    return count


FORMATS: dict[str, Callable[[str, Iterable[numpy.ndarray]], int]] = {
    "npy": write_npy,
    "parquet": write_parquet,
    "csv": write_csv,
}
ROWS = 1 << 18  # of a block that is written at once


def export(path: str, blocks: Iterable[numpy.ndarray], format: str) -> int:
    """Write `Recording.conversions` to a new file in one of FORMATS; returns how many rows.

    Raises FileExistsError, ExportError; a file that could not be finished is removed.
    """
    made = False
    try:
        if os.path.exists(path):
            raise FileExistsError(path)
        made = True
        return FORMATS[format](path, _gathered(blocks))
    except BaseException:
        if made and os.path.exists(path):
            os.unlink(path)
        raise


def _gathered(blocks: Iterable[numpy.ndarray]) -> Iterable[numpy.ndarray]:
    import numpy

    waiting: list[numpy.ndarray] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= ROWS:
            yield numpy.concatenate(waiting)
            waiting.clear()
    if waiting:
        yield numpy.concatenate(waiting)
