"""Lines by lgpio, of which a model stands in here: no machine without GPIO chips can open one by it."""

from __future__ import annotations

import os
import sys
import types

import pytest
from stirbar.core import check_system, front_panel
from stirbar.core.gpio_lines import Line, LineError


class LgpioModel(types.ModuleType):
    """As lgpio 0.2.2: handles of chips, lines that are claimed before they are used, and its own error.

    Chip 0 has lines 0 to 27, of which 4 is held by another program; pulled-up inputs read 1.
    """

    class error(Exception):
        """What lgpio raises."""

    SET_PULL_UP = 32

    def __init__(self) -> None:
        super().__init__("lgpio")
        self.handles: dict[int, dict[int, int]] = {}
        self.opened = -1

    def gpiochip_open(self, chip):
        if chip != 0:
            raise self.error("can not open gpiochip")
        self.opened += 1
        self.handles[self.opened] = {}
        return self.opened

    def gpiochip_close(self, handle):
        del self.handles[handle]

    def _claim(self, handle, line, level):
        if line == 4:
            raise self.error("GPIO busy")
        if line > 27:
            raise self.error("bad GPIO number")
        self.handles[handle][line] = level
        return 0

    def gpio_claim_output(self, handle, line, level=0):
        return self._claim(handle, line, level)

    def gpio_claim_input(self, handle, line, flags=0):
        return self._claim(handle, line, 1 if flags & self.SET_PULL_UP else 0)

    def gpio_read(self, handle, line):
        return self.handles[handle][line]

    def gpio_write(self, handle, line, level):
        self.handles[handle][line] = level
        return 0


@pytest.fixture
def lgpio(monkeypatch):
    """The model as the module that `import lgpio` finds; every handle must be closed in the end."""
    model = LgpioModel()
    monkeypatch.setitem(sys.modules, "lgpio", model)
    monkeypatch.setenv("LG_WD", "")  # so that what open_line sets is undone
    monkeypatch.delenv("LG_WD")
    yield model
    assert not model.handles, "chips left open"


def test_an_output_begins_at_0_and_is_written(lgpio):
    with front_panel.open_line("/dev/gpiochip0", 23, True) as line:
        assert type(line) is front_panel.LgpioLine
        assert line.value() == 0
        line.set(1)
        assert line.value() == lgpio.handles[0][23] == 1


def test_an_input_is_pulled_up_and_read(lgpio):
    line = front_panel.open_line("/dev/gpiochip0", 24, False)
    assert line.value() == 1
    lgpio.handles[0][24] = 0
    assert line.value() == 0
    line.close()
    assert not lgpio.handles


def test_its_pipe_goes_to_the_directory_for_temporary_files(lgpio):
    front_panel.open_line("/dev/gpiochip0", 24, False).close()
    assert os.path.isdir(os.environ["LG_WD"]) and os.environ["LG_WD"] != os.getcwd()


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize(
    ("chip", "number", "why"), [(0, 4, "GPIO busy"), (0, 40, "bad GPIO number"), (7, 4, "can not open gpiochip")]
)
def test_what_lgpio_refuses_is_said_with_the_line(lgpio, output, chip, number, why):
    with pytest.raises(LineError, match=rf"line {number} of /dev/gpiochip{chip} by lgpio: {why}"):
        front_panel.open_line(f"/dev/gpiochip{chip}", number, output)


def test_without_lgpio_the_kernel_is_asked(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lgpio", None)
    with pytest.raises(LineError, match=rf"line 4 of {tmp_path}/gpiochip0: No such file"):
        front_panel.open_line(f"{tmp_path}/gpiochip0", 4, False)
    with pytest.raises(LineError, match=rf"line 4 of {tmp_path}/gpiochip0: No such file"):
        Line(f"{tmp_path}/gpiochip0", 4, 0)


def test_the_check_says_how_to_get_lgpio_where_it_is_absent(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "lgpio", raising=False)
    sys.path_importer_cache.clear()
    assert [finding.measured for finding in check_system._lgpio()] == [
        "not installed; the worker needs none (pip install stirbar[pi] for plug-ins)"
    ]
