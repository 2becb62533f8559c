"""A fresh machine with a real sshd: this one's own files under an overlay, in namespaces that end with it.

What it changes is in memory and gone afterwards. systemd is not there: `systemctl` is a stand-in that keeps a log,
knows what is enabled and active, and runs worker and bridge.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from mosquitto import free_port
from running import wait_for

MODEL, SERIAL = "Raspberry Pi Zero 2 W Rev 1.0", "00000000a1b23f2a"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"  # as sshd gives it
MOUNTS = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
cd "$1" && mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount -t tmpfs -o mode=755 tmpfs root/run
mount -t tmpfs -o mode=755 tmpfs root/sys
mount -t tmpfs tmpfs root/tmp
echo ready
read go
exec chroot root /bin/sh /setup
"""
SETUP = """
set -e
id pi >/dev/null 2>&1 || useradd -m -s /bin/sh pi
printf 'pi:%s\\nroot:%s\\n' "$PASSWORD" "a root password that nobody guesses" |
  chpasswd -c SHA256 -s 1000  # quickly tried
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/own_host_key
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e -f /etc/ssh/own_config
"""
SSHD = """
ListenAddress 127.0.0.1
Port {port}
HostKey /etc/ssh/own_host_key
PasswordAuthentication yes
UsePAM no
PermitRootLogin yes
PidFile none
"""
SYSTEMCTL = """#!/bin/sh
echo "$*" >>/var/log/systemctl
verb=$1; shift; [ "$1" = -q ] && shift
kept=/run/systemctl; mkdir -p $kept
for name; do
  [ -e /etc/systemd/system/$name.service ] || { echo "no unit $name" >&2; exit 5; }
  case $verb in
    enable) : >$kept/$name.enabled ;;
    is-enabled) [ -e $kept/$name.enabled ] || exit 1 ;;
    is-active) kill -0 "$(cat $kept/$name.pid 2>/dev/null)" 2>/dev/null || exit 1 ;;
    restart)
      old=$(cat $kept/$name.pid 2>/dev/null)
      while [ "${old:-1}" != 1 ] && kill $old 2>/dev/null; do sleep 0.1; done
      install -d -o stirbar -g stirbar -m 750 /run/stirbar
      case $name in
        stirbar-worker) words="worker --simulate" ;;
        stirbar-bridge) words=bridge ;;
        *) words= ;;
      esac
      if [ "$words" ]; then
        setsid setpriv --reuid=stirbar --regid=stirbar --init-groups \\
          env STIRBAR_DATA=/var/lib/stirbar STIRBAR_RUN=/run/stirbar HOME=/var/lib/stirbar \\
          /opt/stirbar/bin/stirbar $words >>/var/log/$name.log 2>&1 </dev/null &
        echo $! >$kept/$name.pid
      else
        echo 1 >$kept/$name.pid
      fi ;;
  esac
done
"""
NOT_HERE = ("udevadm", "sysctl", "modprobe")  # would reach the kernel of the machine that runs the tests
APT = """#!/bin/sh
echo "$*" >>/var/log/apt-get
[ "$1" = install ] && shift 3 && echo "$*" >/var/log/installed
exit 0
"""
DPKG_QUERY = """#!/bin/sh
for name in $(cat /var/log/installed 2>/dev/null); do echo "$name install ok installed"; done
"""


class FreshHost:
    """A machine that listens on 127.0.0.1; `root` is its file system, `changed` what differs from a fresh one."""

    def __init__(self, directory: pathlib.Path, password: str) -> None:
        for tool in ("unshare", "sshd", "sudo", "ssh", "ssh-keyscan"):
            if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None:
                pytest.skip(f"{tool} is not installed: apt install openssh-server openssh-client sudo")
        if os.geteuid() != 0:
            pytest.skip("a fresh host needs namespaces and an overlay: run the tests as root")
        own = "{}.{}".format(*sys.version_info[:2])
        ask = ["python3", "-c", "import sys; print('{}.{}'.format(*sys.version_info[:2]))"]
        theirs = subprocess.run(ask, env={"PATH": SYSTEM_PATH}, capture_output=True, text=True).stdout.strip()
        if theirs != own:
            pytest.skip(f"the system's python3 is {theirs or 'not there'}, and the leader's tree is of {own}")
        self.port = free_port()
        self.password = password
        self._log = directory / "sshd.log"
        inside = directory / "host"
        inside.mkdir()
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", MOUNTS, "sh", str(inside)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None and self._process.stdin is not None
        if self._process.stdout.readline() != b"ready\n":
            self._process.wait()
            pytest.skip(f"no namespaces or no overlay here: {self._log.read_text().strip()}")
        child = pathlib.Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0]
        # its file system is seen in its own namespace alone, and after its chroot by who has it open
        self._place = os.open(f"/proc/{child}/root{inside}", os.O_PATH | os.O_DIRECTORY)
        self.upper = pathlib.Path(f"/proc/{os.getpid()}/fd/{self._place}/up")
        self.root = self.upper.with_name("root")
        self._fill()
        self._process.stdin.write(b"go\n")
        self._process.stdin.close()
        wait_for(lambda: "Server listening" in self._log.read_text(), 15.0, f"sshd; {self._log.read_text()}")

    def _fill(self) -> None:
        tree = self.root / "sys/firmware/devicetree/base"
        tree.mkdir(parents=True)
        (tree / "model").write_bytes(MODEL.encode() + b"\0")
        (tree / "serial-number").write_bytes(SERIAL.encode() + b"\0")
        boot = self.root / "boot/firmware"
        boot.mkdir(parents=True, exist_ok=True)
        (boot / "config.txt").write_text("#dtparam=i2c_arm=on\n\n[pi4]\ndtparam=strict_gpiod\n")
        for path in ("opt/stirbar", "etc/stirbar", "var/lib/stirbar"):
            shutil.rmtree(self.root / path, ignore_errors=True)
        (self.root / "etc/avahi/services").mkdir(parents=True, exist_ok=True)
        self.write("etc/hosts", f"127.0.0.1 localhost {os.uname().nodename}\n")  # sudo asks for it
        self.write("etc/ssh/own_config", SSHD.format(port=self.port))
        self.write("setup", f"PASSWORD='{self.password}'\n{SETUP}")
        self.write("etc/sudoers.d/pi", "pi ALL=(ALL) NOPASSWD: ALL\n", 0o440)
        programs = {"systemctl": SYSTEMCTL, "apt-get": APT, "dpkg-query": DPKG_QUERY, "dpkg": "#!/bin/sh\necho amd64\n"}
        programs |= dict.fromkeys(NOT_HERE, "#!/bin/sh\n")
        for name, text in programs.items():
            self.program(name, text)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        (self.root / path).write_text(text)
        (self.root / path).chmod(mode)

    def program(self, name: str, text: str) -> None:
        """A program that is found before the system's own."""
        self.write(f"usr/local/bin/{name}", text, 0o755)

    @contextlib.contextmanager
    def instead(self, path: str, text: str | None, mode: int = 0o755) -> Iterator[None]:
        """A file has another content, or is not there, for a while."""
        before = ((self.root / path).read_text(), (self.root / path).stat().st_mode) if self.exists(path) else None
        if text is None:
            (self.root / path).unlink()
        else:
            self.write(path, text, mode)
        try:
            yield
        finally:
            if before is None:
                (self.root / path).unlink()
            else:
                self.write(path, *before)

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def tree(self) -> dict[str, tuple[object, ...]]:
        """All that was changed since the machine was made, but logs: owner, mode, size and time of each file."""
        found: dict[str, tuple[object, ...]] = {}
        for path in self.upper.rglob("*"):
            name = str(path.relative_to(self.upper))
            if re.match(r"var$|var/lib$|var/(log|lib/(stirbar/|sudo))|root/|tmp/|run/|.*__pycache__", name):
                continue
            about = path.lstat()
            changed = (about.st_size, about.st_mtime_ns) if path.is_file() else ()
            found[name] = (about.st_uid, about.st_mode, *changed)
        return found

    @property
    def fingerprint(self) -> str:
        command = ["ssh-keygen", "-lf", str(self.root / "etc/ssh/own_host_key.pub")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1]

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)  # and with it, by --kill-child, all that runs in there
        self._process.wait()
        os.close(self._place)
        if self._process.stdout is not None:
            self._process.stdout.close()
