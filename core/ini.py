"""INI files that keep their line numbers, comments and order, and can change one key in place.

The syntax is that of the field's config.ini: `[section]`, `key = value` (or `key: value`), comments that begin with `#`
or `;` at the start of a line or behind white space. A value is one line long. Names are case sensitive. A section may
come again; a key may not.
"""

from __future__ import annotations

import os

COMMENT = "#;"
SPACE = " \t"


class Item:
    """One `key = value`: `line` counts from 1, `start` and `end` enclose the value within that line."""

    __slots__ = ("end", "key", "line", "section", "start", "value")

    def __init__(self, section: str, key: str, value: str, line: int, start: int) -> None:
        self.section = section
        self.key = key
        self.value = value
        self.line = line
        self.start = start
        self.end = start + len(value)


def _comment_start(text: str) -> int:
    """Where an inline comment begins in the text behind the delimiter; its length if there is none."""
    for position, letter in enumerate(text):
        if letter in COMMENT and position and text[position - 1] in SPACE:
            return position
    return len(text)


def _control_character(line: str) -> str | None:
    for letter in line:
        if (letter < " " and letter != "\t") or letter == "\x7f":
            return f"a control character (code {ord(letter)}) is in this line; remove it"
    return None


class IniFile:
    """The text of one INI file with what was found in it.

    `items` are in the order of the file, `problems` are (line, what is wrong and what to do). Whatever the text,
    parsing never raises, and `text()` gives it back unchanged until `set` is called.

    Synchronization: none; one thread at a time.
    """

    __slots__ = ("_headers", "_lines", "_section", "items", "name", "problems")

    def __init__(self, text: str = "", name: str = "") -> None:
        self.name = name
        self._parse(text)

    def _parse(self, text: str) -> None:
        self._lines = text.split("\n")
        self._headers: dict[str, int] = {}  # section: line of its first header
        self._section: str | None = ""  # "" before the first header, None behind a broken one
        self.items: list[Item] = []
        self.problems: list[tuple[int, str]] = []
        seen: dict[tuple[str, str], int] = {}
        for number, line in enumerate(self._lines, 1):
            body = line.removesuffix("\r")
            if number == 1:
                body = body.removeprefix("\ufeff")
            problem = _control_character(body) or self._parse_line(body.strip(SPACE), line, number, seen)
            if problem:
                self.problems.append((number, problem))

    def _parse_line(self, body: str, line: str, number: int, seen: dict[tuple[str, str], int]) -> str | None:
        """Take in one line; returns what is wrong with it."""
        if not body or body[0] in COMMENT:
            return None
        if body[0] == "[":
            return self._parse_header(body, number)
        delimiter = min((at for at in (line.find("="), line.find(":")) if at >= 0), default=-1)
        if delimiter < 0:
            return f"'{body}' has no '='; write 'key = value', one line each, or begin a comment with '#'"
        key = line[:delimiter].removeprefix("\ufeff").strip(SPACE)
        if not key:
            return "no key before the '='; write 'key = value'"
        if self._section is None:
            return None
        if not self._section:
            return f"'{key}' comes before the first section; put a '[section]' line above it"
        first = seen.setdefault((self._section, key), number)
        if first != number:
            return f"'{key}' was given already in line {first} of [{self._section}]; keep one of them"
        rest = line[delimiter + 1 :].removesuffix("\r")
        rest = rest[: _comment_start(rest)]
        value = rest.strip(SPACE)
        start = delimiter + 1 + (len(rest) - len(rest.lstrip(SPACE)) if value else 0)
        self.items.append(Item(self._section, key, value, number, start))
        return None

    def _parse_header(self, body: str, number: int) -> str | None:
        close = body.find("]")
        name = body[1:close].strip(SPACE) if close > 0 else ""
        rest = body[close + 1 :].strip(SPACE)
        if not name or (rest and rest[0] not in COMMENT):
            self._section = None
            return f"'{body}' is not a section; write '[name]'"
        self._section = name
        self._headers.setdefault(name, number)
        return None

    def get(self, section: str, key: str) -> Item | None:
        for item in self.items:
            if item.section == section and item.key == key:
                return item
        return None

    def sections(self) -> dict[str, int]:
        """The sections and the line that each begins in."""
        return self._headers

    def text(self) -> str:
        return "\n".join(self._lines)

    def set(self, section: str, key: str, value: str) -> None:
        """Change or add one key; every other character stays.

        Raises ValueError, and changes nothing, for what an INI file cannot hold (a line break, a comment sign behind
        white space, a key with '=').
        """
        before = self.text()
        item = self.get(section, key)
        if item is not None:
            line = self._lines[item.line - 1]
            gap = " " if not item.value and value and line[item.start - 2 : item.start - 1] in SPACE else ""
            self._lines[item.line - 1] = line[: item.start] + gap + value + line[item.end :]
        else:
            self._insert(section, f"{key} = {value}".rstrip(SPACE))
        problems = len(self.problems)
        self._parse(self.text())
        stored = self.get(section, key)
        if stored is None or stored.value != value or len(self.problems) > problems:
            self._parse(before)
            raise ValueError(f"'{key} = {value}' cannot be written in one line of an INI file")

    def remove(self, section: str, key: str) -> None:
        """Take one key out, with its line; nothing happens where there is none."""
        item = self.get(section, key)
        if item is not None:
            del self._lines[item.line - 1]
            self._parse(self.text())

    def _insert(self, section: str, entry: str) -> None:
        ending = "\r" if self._lines[0].endswith("\r") else ""
        lines = [item.line for item in self.items if item.section == section]
        after = max(lines, default=self._headers.get(section, 0))
        if after:
            if after == len(self._lines):  # the last line, without a line end
                self._lines[after - 1] += ending
                ending = ""
            self._lines.insert(after, entry + ending)
            return
        if self._lines[-1]:
            self._lines[-1] += ending
            self._lines.append("")
        above = [ending] if len(self._lines) > 1 else []
        self._lines[-1:] = [*above, f"[{section}]{ending}", entry + ending, ""]


def write_atomically(path: str, text: str) -> None:
    """Replace a file so that a power cut leaves the old one or the new one; keeps mode and owner, follows links."""
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    temporary = f"{path}.{os.getpid()}.new"
    old = os.stat(path) if os.path.exists(path) else None
    mode = old.st_mode & 0o777 if old else 0o644
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            os.fchmod(descriptor, mode)
            if old and os.geteuid() == 0:
                os.fchown(descriptor, old.st_uid, old.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
