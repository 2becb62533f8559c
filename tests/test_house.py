"""The house's rules: which room may import which, what the loop may reach, one definition of each record, packaging."""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile

import numpy as np
import pytest
from compiled_loop import Compiled, python_symbols
from running import stirbar_environment, wait_for
from stirbar.core import events, records, stirring_job
from stirbar.core.version import VERSION
from stirbar.rt.core_arrays import struct_layouts

ROOT = pathlib.Path(__file__).parents[1]
VIEW = ROOT / "build" / "view"
ROOMS = {"rt": "pyx", "core": "core", "bridge": "bridge", "web": "web"}
ABOVE = {"rt": {"core", "bridge", "web"}, "core": {"bridge", "web"}, "bridge": {"web"}, "web": set()}
PYTHON_FILES = sorted(path for folder in ROOMS.values() for path in (ROOT / folder).rglob("*.py"))
COMPILED_FILES = sorted([*ROOT.glob("pyx/*.pyx"), *ROOT.glob("pyx/*.pxd")])


def named(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: pathlib.Path) -> str:
    folder = path.relative_to(ROOT).parts[0]
    return next(room for room, name in ROOMS.items() if name == folder)


def run(*command: object, **options) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- imports ---------------------------------------------------------------------------------------------------------

# module: why it may import what is above it
UPWARD = {"od_arrays.pyx": {"stirbar.core.records"}}  # for NumPy users; the record's dtype is defined once, in core


def imported(path: pathlib.Path) -> list[str]:
    """Modules that a Python file names in import statements, at the top or inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def check_direction(path: pathlib.Path, modules: list[str]) -> None:
    for module in modules:
        first, *rest = module.split(".")
        assert first not in ("core", "bridge", "web", "rt", "pyx", "_top"), f"{named(path)}: say stirbar.{module}"
        if first == "stirbar" and rest:
            allowed = any(module.startswith(known) for known in UPWARD.get(path.name, ()))
            assert allowed or rest[0] not in ABOVE[room_of(path)], f"{named(path)} imports {module}, which is above it"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=named)
def test_imports_only_go_down(path: pathlib.Path) -> None:
    check_direction(path, imported(path))


@pytest.mark.parametrize("path", COMPILED_FILES, ids=named)
def test_compiled_files_import_nothing_above_them(path: pathlib.Path) -> None:
    modules = re.findall(r"^\s*(?:from|import|cimport)\s+([\w.]+)", path.read_text(), re.MULTILINE)
    check_direction(path, modules)


def test_the_import_rule_can_fail() -> None:
    core = ROOT / "core" / "cli.py"
    for module in ("stirbar.web.api", "stirbar.bridge.relay", "core.config", "rt"):
        with pytest.raises(AssertionError):
            check_direction(core, [module])
    check_direction(core, ["stirbar.rt.loop", "stirbar.core.config", "stirbar", "zmq"])


def test_commands_and_entry_points_lead_somewhere() -> None:
    from stirbar.core.cli import COMMANDS, UPPER_COMMANDS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    upper = project["entry-points"]["stirbar.commands"]
    assert set(upper) == set(UPPER_COMMANDS) and not set(upper) & set(COMMANDS)
    for target in [*(target for target, _ in COMMANDS.values()), *upper.values(), project["scripts"]["stirbar"]]:
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), target


# --- the compiled loop shows no Python -------------------------------------------------------------------------------

# What the loop's threads may ask of the C library: none of these allocates or locks, none waits but the one sleep, a
# transfer on the bus (ioctl: for its bits, at most I2C_TIMEOUT), and files of sysfs, of lines and of the guard's
# wake-up that need not wait.
C_LIBRARY = {
    "memcmp", "memcpy", "memset", "memmove",
    "acos", "asin", "atan", "atan2", "ceil", "copysign", "cos", "exp", "exp2", "expm1", "fabs", "floor", "fmax", "fmin",
    "fmod", "hypot", "log", "log1p", "log2", "lround", "pow", "round", "sin", "sqrt", "tan", "tanh",
    "clock_gettime", "clock_nanosleep",
    "ioctl", "read", "write", "pwrite", "pwrite64", "close", "strncpy", "__errno_location",
}  # fmt: skip
# Behind these pointers is everything that the loop's threads run; the test holds the list complete.
POINTED_AT = {
    "loop": {"run_thread", "simulate"},
    "sampling": {"sampling_tick", "housekeeping_tick", "temperature_tick"},
    "actuators": {"actuators_tick", "doses_tick", "pulses_tick"},
    "board": {
        "board_adc_plan", "board_adc_start", "board_adc_gain", "board_adc_convert", "board_adc_read",
        "board_led_write", "board_led_channel_write", "board_led_check", "board_temperature_read",
        "board_temperature_check", "board_rail_convert", "board_rail_read",
    },
    "hardware": {
        "hardware_edges_read", "hardware_stirrer_write", "hardware_heater_write", "hardware_pump_write",
        "hardware_pulse", "hardware_stirrer_period",
    },
    "clock": {"real_now_ns", "real_sleep_until_ns", "virtual_now_ns", "virtual_sleep_until_ns"},
    "sim": {
        "sim_adc_plan", "sim_adc_start", "sim_adc_gain", "sim_adc_convert", "sim_adc_read", "sim_led_write",
        "sim_led_channel_write", "sim_temperature_read", "sim_check", "sim_rail_convert", "sim_rail_read",
    },
    "sim_outputs": {
        "sim_edges_read", "sim_stirrer_write", "sim_heater_write", "sim_pump_write", "sim_stirrer_period",
    },
}  # fmt: skip
# these turn objects into structs, before the threads live
HOST_ONLY = {
    "configure.pxd", "configure_board.pxd", "configure_dosing.pxd", "configure_heat.pxd", "configure_leds.pxd",
    "configure_outputs.pxd", "stage.pxd",
}  # fmt: skip


@pytest.fixture(scope="module")
def loop_in_c(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(ROOT / "pyx" / "loop.pyx", tmp_path_factory.mktemp("loop"), VIEW)


def plain(name: str) -> str:
    """`real_now_ns` of `__pyx_f_7stirbar_2rt_5clock_real_now_ns`."""
    while match := re.match(r"(?:__pyx_f)?_?(\d+)(\w+)", name):
        name = match[2][int(match[1]) :]
    return name.removeprefix("_")


def test_the_loop_reaches_no_python_and_only_harmless_c(loop_in_c: Compiled) -> None:
    roots = loop_in_c.address_taken()
    assert {plain(root) for root in roots} == set().union(*POINTED_AT.values())
    reached = loop_in_c.reachable(roots)
    assert python_symbols(reached) == set()
    # so there is no allocation, no lock (and so no GIL to take), no file and no socket in it either
    outside = {name.lstrip("*") for name in reached if name not in loop_in_c.defined} - {"__indirect_call"}
    assert outside <= C_LIBRARY, outside - C_LIBRARY
    inside = {plain(name) for name in reached}
    assert {"drive", "ring_push", "histogram_add", "estimators_apply", "controllers_apply", "heat_protect"} <= inside
    assert len(reached) > 150  # the graph is not an empty one


def test_cython_finds_no_python_in_what_the_loop_reaches(loop_in_c: Compiled) -> None:
    scored = {f"{file}:{line}": score for file, lines in loop_in_c.scores.items() for line, score in lines.items()}
    pxd = {at: score for at, score in scored.items() if ".pxd:" in at and at.split(":")[0] not in HOST_ONLY}
    assert len(pxd) > 2000 and {at: score for at, score in pxd.items() if score} == {}
    source = (ROOT / "pyx" / "loop.pyx").read_text().splitlines()
    for function in sorted(POINTED_AT["loop"]):
        start = next(i for i, text in enumerate(source, 1) if re.match(rf"cdef .*\b{function}\(.*nogil:", text))
        end = next(i for i in range(start + 1, len(source)) if not source[i - 1])
        lines = [f"loop.pyx:{i}" for i in range(start, end)]
        assert sum(scored.get(at, 0) for at in lines) == 0, function
        assert any(at in scored for at in lines)
    assert sum(score for at, score in scored.items() if at.startswith("loop.pyx")) > 0  # the host's part has Python


BAD = {
    "takes the GIL": "    with gil:\n        x = [1]\n",
    "allocates": "    free(malloc(8))\n",
    "raises": "    if may_raise(1):\n        return\n",
    "logs": "    printf(b'tick\\n')\n",
}


@pytest.mark.parametrize("what", BAD)
def test_these_checks_can_fail(what: str, tmp_path: pathlib.Path) -> None:
    """The same checks on a task that does what no task may."""
    (tmp_path / "bad.pyx").write_text(
        "from libc.stdio cimport printf\nfrom libc.stdlib cimport free, malloc\n"
        "cdef struct Task:\n    void (*run)() noexcept nogil\ncdef Task task\n"
        "cdef int may_raise(int x) except -1 nogil:\n    if x > 2:\n        raise ValueError\n    return x\n"
        f"cdef void deep() noexcept nogil:\n{BAD[what]}"
        "cdef void tick() noexcept nogil:\n    deep()\n"
        "task.run = tick\n"
    )
    bad = Compiled(tmp_path / "bad.pyx", tmp_path, VIEW)
    assert {plain(root) for root in bad.address_taken()} == {"tick"}
    reached = bad.reachable(bad.address_taken())
    if what in ("allocates", "logs"):
        assert {name for name in reached if name not in bad.defined} - C_LIBRARY
    else:
        assert python_symbols(reached)
        first = 11  # the line after `cdef void deep`
        assert sum(bad.scores["bad.pyx"].get(line, 0) for line in (first - 1, first, first + 1)) > 0


# --- what worker and bridge have loaded ------------------------------------------------------------------------------

# Costly, or not of this room. typing is imported by pyzmq and paho themselves, never by us (next test).
FORBIDDEN = {
    "asyncio", "bottle", "concurrent.futures", "configparser", "cryptography", "dataclasses", "email", "http.server",
    "importlib.metadata", "inspect", "multiprocessing", "numpy", "pydantic", "sqlite3", "stirbar.web", "unittest",
    "xml", "yaml",
}  # fmt: skip
SELF_TEST = {f"stirbar.core.{path.stem}" for path in (ROOT / "core").glob("self_test*.py")}
FORBIDDEN_IN_WORKER = (
    FORBIDDEN | {"stirbar.bridge", "paho", "logging", "ssl", "urllib.request", "subprocess"} | SELF_TEST
)
FORBIDDEN_IN_BRIDGE = FORBIDDEN | {"stirbar.rt.loop", "stirbar.core.worker", "stirbar.core.host"}
# What the dependencies themselves import although we do not; taken from an empty process that imports only them.
DEPENDENCIES = {"worker": "zmq", "bridge": "zmq, paho.mqtt.client"}

DUMP = """
import signal, sys
def dump(*_):
    with open({path!r} + ".part", "w") as file:
        file.write("\\n".join(sorted(sys.modules)))
    import os
    os.rename({path!r} + ".part", {path!r})
signal.signal(signal.SIGUSR1, dump)
from stirbar.{main} import main
sys.exit(main(sys.argv[{skip}:]))
"""


def unwanted(modules: set[str], forbidden: set[str], dependencies: str) -> set[str]:
    """Modules that are forbidden, or inside a forbidden package, and are not there because of a dependency."""
    brought = set(run(sys.executable, "-c", f"import {dependencies}, sys; print(*sys.modules)").split())
    return {name for name in modules - brought for bad in forbidden if name == bad or name.startswith(f"{bad}.")}


def modules_of(process: subprocess.Popen, path: pathlib.Path) -> set[str]:
    process.send_signal(signal.SIGUSR1)
    wait_for(path.exists, 10.0, "the list of modules")
    return set(path.read_text().split())


def test_a_running_worker_has_loaded_only_what_it_needs(start_worker, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "modules"
    worker = start_worker("od_reading.config.raw=1", code=DUMP.format(path=str(path), main="core.worker", skip=2))
    next(iter(worker.client.stream("od")))
    worker.client.set("stirring", "target_rpm", 300)
    worker.client.command("settings")
    modules = modules_of(worker.process, path)
    assert unwanted(modules, FORBIDDEN_IN_WORKER, DEPENDENCIES["worker"]) == set()
    compiled = {name for name in modules if name.startswith("stirbar.rt.")}
    assert compiled == {"stirbar.rt.loop"}
    assert unwanted(modules | {"numpy.linalg"}, FORBIDDEN_IN_WORKER, "zmq") == {"numpy.linalg"}


def test_a_running_bridge_has_loaded_only_what_it_needs(start_worker, tmp_path: pathlib.Path) -> None:
    """Without a broker: it goes on trying, and reads the worker meanwhile."""
    path, log = tmp_path / "modules", tmp_path / "log"
    worker = start_worker()
    settings = [
        "unit.name=w", f"unit.data_directory={worker.directory}/data", f"unit.runtime_directory={worker.directory}/run",
        "mqtt.broker_port=1",
    ]  # fmt: skip
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    code = DUMP.format(path=str(path), main="bridge.command", skip=1)
    with open(log, "wb") as file:
        bridge = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], env=stirbar_environment(), stdout=file, stderr=file
        )
    try:
        spool = worker.directory / "data" / "spool"
        wait_for(lambda: bridge.poll() is not None or (spool.is_dir() and any(spool.iterdir())), 20.0, "a spool")
        assert bridge.poll() is None, log.read_text()
        modules = modules_of(bridge, path)
    finally:
        bridge.terminate()
        assert bridge.wait(15) == 0, log.read_text()
    assert unwanted(modules, FORBIDDEN_IN_BRIDGE, DEPENDENCIES["bridge"]) == set()


LEAN = {"typing", "dataclasses", "logging", "asyncio", "pydantic", "configparser", "numpy"}


def module_level(path: pathlib.Path) -> set[str]:
    """Modules imported when this one is, so not under TYPE_CHECKING and not inside functions."""
    names: set[str] = set()

    def walk(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                walk(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
                walk(node.body)

    walk(ast.parse(path.read_text()).body)
    return names


@pytest.mark.parametrize("main", ["core/worker.py", "bridge/command.py"])
def test_what_worker_and_bridge_load_imports_nothing_costly(main: str) -> None:
    """Our own modules, from the command's on: what pyzmq and paho import is theirs."""
    seen: dict[str, set[str]] = {}
    waiting = [main]
    while waiting:
        name = waiting.pop()
        seen[name] = module_level(ROOT / name)
        files = {f"{'/'.join(module.split('.')[1:])}.py" for module in seen[name] if module.startswith("stirbar.")}
        waiting += [file for file in files if file not in seen and (ROOT / file).is_file()]
    assert len(seen) > 8
    costly = {name: {module.split(".")[0] for module in modules} & LEAN for name, modules in seen.items()}
    assert {name: modules for name, modules in costly.items() if modules} == {}


# --- one definition of each record -----------------------------------------------------------------------------------


def enum_numbers(prefix: str) -> dict[str, int]:
    """Numbers of the `PREFIX_*` names in pyx/types.pxd."""
    text = (ROOT / "pyx" / "types.pxd").read_text()
    found = re.findall(rf"^    {prefix}_(\w+) = ([\d <]+?)\s*(?:#.*)?$", text, re.MULTILINE)
    return {name: eval(expression, {"__builtins__": {}}) for name, expression in found}


@pytest.mark.parametrize(
    ("struct", "dtype", "packer"),
    [("Reading", records.READING_DTYPE, records.READING), ("TraceItem", records.TRACE_DTYPE, records.TRACE)],
)
def test_records_have_one_layout(struct: str, dtype: list[tuple[str, str]], packer) -> None:
    size, fields = struct_layouts()[struct]
    numpy_dtype = np.dtype(dtype)
    assert size == packer.size == numpy_dtype.itemsize
    assert list(fields) == [name for name, _ in dtype]
    assert {name: (offset, kind.itemsize) for name, (kind, offset) in numpy_dtype.fields.items()} == fields
    numbers = range(1, len(dtype) + 1)
    values = packer.unpack(np.array([tuple(numbers)], dtype=numpy_dtype).tobytes())
    assert values == tuple(numbers)


def test_streams_flags_and_trace_kinds_have_one_number_each() -> None:
    assert {name.lower(): number for name, number in enum_numbers("STREAM").items()} == records.STREAM_IDS
    assert {name.lower(): bit for name, bit in enum_numbers("FLAG").items()} == records.FLAGS
    kinds = {name[6:]: value for name, value in vars(records).items() if re.fullmatch(r"TRACE_[A-Z]+", name)}
    assert enum_numbers("TRACE") == {name: value for name, value in kinds.items() if isinstance(value, int)}
    assert enum_numbers("RECORD") == {"VERSION": records.RECORD_VERSION}
    assert set(records.READING_STREAMS) == set(records.STREAM_UNITS) <= set(records.STREAMS)


def test_commands_and_events_have_one_number_each() -> None:
    ours = {name[8:]: value for name, value in vars(events).items() if name.startswith("COMMAND_")}
    assert enum_numbers("COMMAND") == ours
    numbers = enum_numbers("EVENT")
    named_here = {name[6:]: value for name, value in vars(events).items() if name.startswith("EVENT_")}
    assert named_here.items() <= numbers.items()
    told = {code: name for code, (name, *_) in events.EVENTS.items()}
    # named by their argument: test_heating.py, test_dosing.py
    doses = {"DOSE_STEP", "DOSE_DONE", "DOSE_CUT", "DOSE_OWED"}
    answers = {"COMMAND_DONE", "COMMAND_REFUSED", "HEAT_LIMITED", "HEAT_FREED"} | doses
    assert told == {number: name.lower() for name, number in numbers.items() if name not in answers}


def test_ceilings_in_python_are_those_that_are_compiled_in() -> None:
    from stirbar.rt.control_arrays import RAMP_CEILING, RPM_CEILING, RPM_FLOOR

    assert (stirring_job.RPM_FLOOR, stirring_job.RPM_CEILING) == (RPM_FLOOR, RPM_CEILING)
    assert stirring_job.RAMP_CEILING == RAMP_CEILING


# --- files -----------------------------------------------------------------------------------------------------------

LINES_MAXIMUM = 500
# A longer file, and why it is one.
LONGER = {
    "pyx/loop.pyx": "the loop's state and the host's view of it: one extension type",
    "bridge/sqlite_store.py": "one class behind one interface (store.py)",
    "bridge/ingest.py": "the way of a datum from the broker to the store, step by step",
}


@pytest.mark.parametrize("path", [*PYTHON_FILES, *COMPILED_FILES], ids=named)
def test_a_long_file_has_a_reason(path: pathlib.Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= LINES_MAXIMUM or named(path) in LONGER, f"{lines} lines: split it, or say why not in LONGER"


@pytest.mark.parametrize("path", COMPILED_FILES, ids=named)
def test_a_compiled_file_says_why_where_and_in_which_units(path: pathlib.Path) -> None:
    lines = iter(path.read_text().splitlines())
    for start in ("# Why compiled: ", "# Thread rule: ", "# Units: "):
        for line in lines:
            assert line.startswith("#"), f"no line '{start}' at the top"
            if line.startswith(start):
                break


@pytest.mark.parametrize("path", PYTHON_FILES, ids=named)
def test_what_is_public_is_documented(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), "no docstring"
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    missing = [f"{node.name} (line {node.lineno})" for node in public if not ast.get_docstring(node)]
    assert not missing, f"no docstring: {', '.join(missing)}"


def test_the_example_config_is_the_packaged_one() -> None:
    assert (ROOT / "config.example.ini").read_text() == (ROOT / "core" / "config.example.ini").read_text()


def test_the_version_is_in_one_place() -> None:
    pattern = re.compile(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = listed.stdout.split() if listed.returncode == 0 else [named(path) for path in PYTHON_FILES] + ["setup.py"]
    product = [f for f in files if f.endswith((".py", ".toml", ".pyx", ".pxd", ".js", ".tpl")) and "vendor" not in f]
    holders = [f for f in product if not f.startswith("tests/") and pattern.search((ROOT / f).read_text())]
    assert holders == ["core/version.py"]


# --- deployment files ------------------------------------------------------------------------------------------------


def test_units_run_commands_that_exist_with_what_the_loop_needs() -> None:
    from stirbar.core.cli import COMMANDS, UPPER_COMMANDS
    from stirbar.core.config import load_config
    from stirbar.core.guard_command import WATCHDOGS

    config = load_config()
    highest = max(config.get("loop.config", f"priority_{thread}") for thread in ("sampling", "actuators"))
    starts = {"guard": "guard", "worker": "worker", "bridge": "bridge", "leader": "leader"}
    starts["recorder"] = "record --continuous"
    for name, start in starts.items():
        text = (ROOT / "core" / "deploy" / f"stirbar-{name}.service").read_text()
        command = re.search(r"^ExecStart=/opt/stirbar/bin/stirbar (.+)$", text, re.MULTILINE)
        assert command and command[1] == start and start.split()[0] in {**COMMANDS, **UPPER_COMMANDS}
        assert "NoNewPrivileges=yes" in text and "CapabilityBoundingSet=\n" in text and "User=stirbar" in text
        unit, service = text.split("\n[Service]\n")
        assert "\nStartLimitIntervalSec=0\n" in unit, "systemd gives up after 5 starts in 10 s"
        assert "\nRestart=always\n" in service and re.search(r"^RestartSec=[12]$", service, re.MULTILINE)
        rtprio = re.search(r"^LimitRTPRIO=(\d+)$", text, re.MULTILINE)
        if name == "worker":
            assert rtprio and int(rtprio[1]) == highest and "LimitMEMLOCK=infinity" in text
            assert "RestrictRealtime" not in text and "PrivateNetwork=yes" in text
            assert "Wants=stirbar-guard.service" in text
            # the devices that the compiled part opens by name, of those that the policy closes
            assert {"/dev/gpiomem rw", "/dev/cpu_dma_latency rw", "char-i2c rw", "char-gpiochip rw"} == set(
                re.findall(r"^DeviceAllow=(.+)$", text, re.MULTILINE)
            )
        elif name == "guard":
            assert rtprio and int(rtprio[1]) > highest and "LimitMEMLOCK=infinity" in text
            assert "OOMScoreAdjust=-1000" in text and "Before=stirbar-worker.service" in text
            rules = (ROOT / "core" / "deploy" / "60-stirbar.rules").read_text()
            for path in WATCHDOGS:
                assert f"\nDeviceAllow={path} rw\n" in text and f'KERNEL=="{path.removeprefix("/dev/")}"' in rules
        else:
            assert rtprio is None and "RestrictRealtime=yes" in text
        assert (name in ("worker", "bridge")) == bool(re.search(r"^MemoryMax=\d+M$", text, re.MULTILINE))
    guard = (ROOT / "core" / "deploy" / "stirbar-guard.service").read_text()
    safe = (ROOT / "core" / "deploy" / "stirbar-safe.service").read_text()
    assert "\nWants=stirbar-safe.service\n" in guard and "After=local-fs.target stirbar-safe.service" in guard
    assert "\nExecStopPost=-/opt/stirbar/bin/stirbar guard --once\n" in guard
    assert "\nExecStart=/opt/stirbar/bin/stirbar guard --once\n" in safe and "\nType=oneshot\n" in safe
    limits = (ROOT / "core" / "deploy" / "stirbar-limits.conf").read_text()
    assert int(re.search(r"rtprio +(\d+)", limits)[1]) >= highest


def test_the_end_of_a_worker_that_nobody_asked_for_is_one_sentence() -> None:
    text = (ROOT / "core" / "deploy" / "stirbar-worker.service").read_text()
    command = re.search(r"^ExecStopPost=-/bin/sh -c '(.+)'$", text, re.MULTILINE)

    def said(result: str) -> str:
        environment = {"SERVICE_RESULT": result, "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}
        return subprocess.run(["/bin/sh", "-c", command[1]], env=environment, capture_output=True, text=True).stdout

    assert said("success") == "" and said("oom-kill") == "<3>worker ended (oom-kill, KILL)\n"


def test_systemd_understands_the_units(tmp_path: pathlib.Path) -> None:
    """And finds little that they could do without: its own measure of exposure, in tenths."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    units = []
    for path in sorted((ROOT / "core" / "deploy").glob("*.service")):
        units.append(tmp_path / path.name)
        units[-1].write_text(path.read_text().replace("/opt/stirbar/bin/stirbar", "/bin/true"))
    assert len(units) == 6
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for unit in units:
        options = ["--offline=true", "--no-pager", "--threshold=20"]
        done = subprocess.run(["systemd-analyze", "security", *options, unit], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


# --- the suite itself ------------------------------------------------------------------------------------------------

SKIPPING = """
import pytest
def test_optional(): pytest.skip("no browser")
@pytest.mark.hil
def test_kernel(): pytest.skip("no simulator kernel")
@pytest.mark.xfail
def test_expected(): assert False
"""


@pytest.mark.parametrize(
    ("settings", "status", "last"),
    [
        ({}, 0, "optional parts skipped: 2 (1 x no browser; 1 x no simulator kernel)"),
        ({"STIRBAR_REQUIRE": "all"}, 1, "optional parts skipped: 1 (1 x no simulator kernel)"),
        ({"STIRBAR_REQUIRE": "all", "STIRBAR_HIL": "linux"}, 1, "optional parts skipped: 0"),
    ],
)
def test_skips_are_counted_or_fail(settings: dict[str, str], status: int, last: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPPING)
    environment = stirbar_environment() | settings
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), environment["PYTHONPATH"]])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", os.devnull, "test_skips.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (status, last), done.stdout


# --- packaging -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """A source distribution, and the wheel that is built from it alone; compiled unoptimised to save time."""
    pytest.importorskip("setuptools")
    top = tmp_path_factory.mktemp("built")
    options = top / "options.cfg"
    options.write_text("[build_ext]\nparallel = 2\n")
    compiler = top / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {sysconfig.get_config_var("CC") or "gcc"} "$@" -O0\n')
    compiler.chmod(0o755)
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(options), "CC": str(compiler)}
    source = top / "source"
    ignored = {"build", ".git", "__pycache__", ".venv", ".venv-interop", "dist"}
    shutil.copytree(ROOT, source, ignore=lambda _, names: [n for n in names if n in ignored or n.endswith(".so")])
    # the generated C, when it is there and newer than its sources, saves a minute on a small board
    if (ROOT / "build" / "cy").exists():
        shutil.copytree(ROOT / "build" / "cy", source / "build" / "cy", copy_function=shutil.copy2)
    code = "from setuptools import build_meta as b; print(b.build_sdist({!r}))"
    name = run(sys.executable, "-c", code.format(str(top)), cwd=source, env=environment).split()[-1]
    with tarfile.open(top / name) as archive:
        checked = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from 3.11.4 on
        archive.extractall(top / "unpacked", **checked)
    code = "from setuptools import build_meta as b; print(b.build_wheel({!r}))"
    unpacked = next((top / "unpacked").iterdir())
    wheel = run(sys.executable, "-c", code.format(str(top)), cwd=unpacked, env=environment).split()[-1]
    return {"sdist": top / name, "wheel": top / wheel}


def test_the_source_distribution_has_what_a_build_and_its_tests_need(built: dict[str, pathlib.Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {named(path) for path in (ROOT / "pyx" / "guard").glob("*.[ch]")} <= names
    for path in [*COMPILED_FILES, *PYTHON_FILES, *ROOT.glob("pyx/*.pyi"), *ROOT.glob("tests/*.py")]:
        assert named(path) in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "Makefile", "config.example.ini"} <= names
    built_files = (".so", ".pyc", "stirbar-guard")
    assert not [name for name in names if name.endswith(built_files) or name.startswith("build/")]


def test_the_wheel_has_what_runs_and_nothing_else(built: dict[str, pathlib.Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = set(archive.namelist())
    modules = {re.sub(r"\..*", "", pathlib.Path(name).name) for name in names if name.endswith(".so")}
    assert modules == {path.stem for path in ROOT.glob("pyx/*.pyx")}
    package = {
        "stirbar/__init__.py", "stirbar/py.typed", "stirbar/core/config.example.ini", "stirbar/core/worker.py",
        "stirbar/bridge/command.py", "stirbar/bridge/migrations/0001_first.sql",
        "stirbar/bridge/migrations/0002_acknowledged.sql", "stirbar/web/demo.py",
        "stirbar/rt/guard/stirbar-guard",
        *(f"stirbar/rt/{path.name}" for path in [*ROOT.glob("pyx/*.pxd"), *ROOT.glob("pyx/*.pyi")]),
        *(f"stirbar/core/deploy/{path.name}" for path in (ROOT / "core" / "deploy").iterdir()),
        *(f"stirbar/{named(path)}" for path in (ROOT / "web" / "static").rglob("*") if path.is_file()),
        *(f"stirbar/{named(path)}" for path in (ROOT / "web" / "templates").rglob("*") if path.is_file()),
    }  # fmt: skip
    assert package <= names, package - names
    assert not [name for name in names if name.endswith((".c", ".pyx"))]
    tops = {name.split("/")[0] for name in names}
    assert tops == {"stirbar", f"stirbar-{VERSION}.dist-info"}


def test_an_installed_stirbar_runs_outside_the_tree(built: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> None:
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    # the dependencies are those of the running interpreter: no network is needed
    site = pathlib.Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    search = os.pathsep.join([str(site), *dependencies])
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": search}
    installer = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run(*installer, built["wheel"], cwd=tmp_path)
    stirbar = tmp_path / "venv" / "bin" / "stirbar"
    assert run(stirbar, "--version", cwd=tmp_path, env=environment) == f"stirbar {VERSION}\n"
    where = run(python, "-c", "import stirbar.rt.loop as m; print(m.__file__)", cwd=tmp_path, env=environment)
    assert where.startswith(str(site))
    guard = site / "stirbar" / "rt" / "guard" / "stirbar-guard"
    assert run(guard, "--version") == f"stirbar-guard {VERSION}\n"
    twin = run(stirbar, "twin", "--hours", "0.01", "--json", cwd=tmp_path, env=environment)
    assert '"missed_conversions"' in twin
    for command in ("bridge", "leader", "demo"):
        assert f"stirbar {command}" in run(stirbar, command, "--help", cwd=tmp_path, env=environment)
