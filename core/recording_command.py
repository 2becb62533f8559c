"""`stirbar recording`: what a recording holds, whether it is whole, and its conversions for other programs."""

from __future__ import annotations

import json
import sys
import time

from stirbar.core.recording import Recording, RecordingError
from stirbar.core.recording_export import FORMATS, ExportError, export

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any


def main(argv: list[str]) -> int:
    """`stirbar recording`"""
    import argparse

    parser = argparse.ArgumentParser(prog="stirbar recording", description="Look into a recording, or export it.")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="what it holds, and what is missing")
    info.add_argument("path", help="file, or directory of a continuous recording")
    info.add_argument("--json", action="store_true")
    out = commands.add_parser("export", help="its conversions as NumPy, Parquet or CSV")
    out.add_argument("path", help="file, or directory of a continuous recording")
    out.add_argument("--out", required=True, help="file to write; must not exist; .npy, .parquet or .csv")
    out.add_argument("--format", choices=tuple(FORMATS), help="default: by the ending of --out")
    out.add_argument("--channel", type=int, choices=(1, 2, 3, 4), help="one photodiode channel (default: all)")
    out.add_argument("--from", dest="start_s", type=float, help="seconds after the recording's first conversion")
    out.add_argument("--to", dest="end_s", type=float, help="seconds after the recording's first conversion")
    arguments = parser.parse_args(argv)
    try:
        with Recording(arguments.path) as recording:
            return show(recording, arguments.json) if arguments.command == "info" else run_export(recording, arguments)
    except FileExistsError:
        print(f"stirbar recording: {arguments.out} exists and is not overwritten; name another file", file=sys.stderr)
    except (RecordingError, ExportError, ValueError, OSError) as error:
        print(f"stirbar recording: {error}", file=sys.stderr)
    return 1


def show(recording: Recording, as_json: bool) -> int:
    """Print what there is; 0 when it is whole, 1 when bytes or items are missing."""
    information = recording.information()
    is_whole = not (information["missing_bytes"] or information["unreadable"])
    is_whole &= not any(stream["holes"] for stream in information["streams"].values())
    if as_json:
        print(json.dumps(information))
        return 0 if is_whole else 1
    print(f"unit {information['unit']}, build {information['build_id']}")
    first, last = moment(information["first_wall_ns"]), moment(information["last_wall_ns"])
    print(f"{first} to {last}, {len(information['runs'])} run(s)")
    print(f"{information['segments']} file(s), {information['bytes']} bytes")
    for name, stream in information["streams"].items():
        print(f"{name}: {stream['items']} items, {stream['holes']} holes of {stream['items_missing']} items")
    if information["missing_bytes"]:
        print(f"{information['missing_bytes']} bytes are no whole frame: damaged, or cut mid-write")
    for name in information["unreadable"]:
        print(f"{name} was cut before anything was in it: left out")
    if information["dropped_bytes"]:
        print(f"{information['dropped_bytes']} older bytes were dropped to stay within the size")
    return 0 if is_whole else 1


def moment(wall_ns: Any) -> str:
    """A time as people write it, UTC."""
    return "nothing" if wall_ns is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall_ns / 1e9))


def run_export(recording: Recording, arguments: Namespace) -> int:
    """Write the file that was asked for."""
    format = arguments.format or arguments.out.rpartition(".")[2]
    if format not in FORMATS:
        raise ExportError(f"{arguments.out} ends in none of {', '.join(FORMATS)}; name --format")
    start_ns = end_ns = None
    if arguments.start_s is not None or arguments.end_s is not None:
        first = next(iter(recording.conversions()), None)
        origin_ns = 0 if first is None else int(first["monotonic_ns"].min())
        start_ns = None if arguments.start_s is None else origin_ns + round(arguments.start_s * 1e9)
        end_ns = None if arguments.end_s is None else origin_ns + round(arguments.end_s * 1e9)
    count = export(arguments.out, recording.conversions(arguments.channel, start_ns, end_ns), format)
    print(f"{count} conversions in {arguments.out}")
    if recording.missing_bytes:
        print(
            f"stirbar recording: {recording.missing_bytes} bytes of {recording.path} are no whole frame",
            file=sys.stderr,
        )
    return 0
