"""The first steps of a bootstrap: the host's key, the login, the rights of root, and no default passwords."""

from __future__ import annotations

import shlex

from stirbar.bridge.bootstrap_host import Host, Refusal
from stirbar.bridge.ssh import HostKey, Session, fetch_keys

# What images are shipped with, or guides tell one to set; and each user's own name.
DEFAULT_PASSWORDS = (
    *("raspberry", "pioreactor", "toor", "root", "admin", "password", "stirbar", "raspberrypi", "ubuntu", "debian"),
    *("1234", "12345", "123456", "12345678", "changeme", "dietpi", "orangepi", "alarm"),
)
REPLACE = "--replace-default-password"
# Who has one: by the system's own hash, so that it is found however we came in.
FIND_DEFAULTS = """
import ctypes, sys
words = sys.stdin.read().split()
crypt = ctypes.CDLL("libcrypt.so.1").crypt
crypt.restype = ctypes.c_char_p
for line in open("/etc/shadow"):
    name, hashed = line.split(":")[:2]
    if hashed.startswith("$") and any(crypt(w.encode(), hashed.encode()) == hashed.encode() for w in [*words, name]):
        print(name)
"""
AUTHORIZED = "$HOME/.ssh/authorized_keys"


def is_default(user: str, password: str) -> bool:
    """Whether everybody knows this password."""
    return password in ("", user, *DEFAULT_PASSWORDS)


def check_host_key(host: Host) -> list[str]:
    """The key is that which was pinned, or one that the operator confirms."""
    known = host.plan.known_hosts
    pinned, shown = known.find(host.target), fetch_keys(host.target)
    if pinned is None:
        host.host_key = _confirmed(host, shown)
        return [f"pin the host key {host.host_key.fingerprint} ({host.host_key.kind})"]
    if pinned not in shown:
        now = next((key for key in shown if key.kind == pinned.kind), shown[0])
        raise Refusal(
            f"the host key is {now.fingerprint}, and {pinned.fingerprint} was pinned: another machine answers, or it "
            "was installed anew",
            f"if it was: `ssh-keygen -f {known.path} -R '{host.target.known_as}'`, and compare the new key",
        )
    host.host_key = pinned
    return []


def _confirmed(host: Host, shown: list[HostKey]) -> HostKey:
    """The key that the operator takes for the host's; nothing is sent there before. A dry run asks too: it logs in."""
    key = host.plan.confirm(host.target, shown)
    if key is None:
        raise Refusal(
            f"the host key {shown[0].fingerprint} was not confirmed",
            "compare it at the machine: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`; then give it with "
            "--host-key, or accept whatever answers with --yes",
        )
    return key


def pin_host_key(host: Host) -> None:
    """Keep the key that was confirmed."""
    assert host.host_key is not None
    host.plan.known_hosts.pin(host.target, host.host_key)


def check_login(host: Host) -> list[str]:
    """The leader's own key lets us in."""
    if host.session is None:
        _log_in(host)
    public = host.plan.own_key.with_suffix(".pub")
    if not public.exists():  # a dry run makes none
        return [f"make the leader's key, and let it in as {host.target.user}"]
    line = public.read_text().strip()
    there = host.user(f"grep -cxF {shlex.quote(line)} {AUTHORIZED} 2>/dev/null || true").strip()
    return [] if there.isdecimal() and int(there) else [f"let the leader's key in as {host.target.user}"]


def _log_in(host: Host) -> None:
    assert host.host_key is not None
    host.session = Session(host.target, host.host_key, host.plan.own_key, host.directory)
    if host.session.open():
        return
    password = host.password = host.plan.password(host.target)
    if not password:
        raise Refusal(
            f"the host knows no key of ours for {host.target.user}, and no password was given",
            "run it at a terminal, give --password-file, or put the leader's key there: "
            f"{host.plan.own_key.with_suffix('.pub')}",
        )
    if is_default(host.target.user, password) and not host.plan.replace_default_password:
        raise Refusal(
            "the password given is a default that everybody knows",
            f"change it on the host with `passwd`, or give {REPLACE}: then only keys let anybody in",
        )
    if not host.session.open(password):
        raise Refusal(
            f"{host.target} refuses this password, or takes none",
            "is the user right (--user), and `PasswordAuthentication` on? Or put the leader's key there by hand: "
            f"{host.plan.own_key.with_suffix('.pub')}",
        )


def install_key(host: Host) -> None:
    """Put the leader's key in, and come back by it: the password is not needed again."""
    line = host.plan.own_key.with_suffix(".pub").read_text().strip()
    host.user(
        f"umask 077; mkdir -p $HOME/.ssh && touch {AUTHORIZED} && "
        f'if [ -n "$(tail -c 1 {AUTHORIZED})" ]; then echo >>{AUTHORIZED}; fi; cat >>{AUTHORIZED}',
        line.encode() + b"\n",
    )
    assert host.session is not None
    host.session.close()
    if not host.session.open():
        raise Refusal(
            f"{host.target} does not take the key that was just put into authorized_keys",
            "look at `PubkeyAuthentication` and at the home directory's rights on the host",
        )


def check_rights(host: Host) -> list[str]:
    """Root, or sudo without or with the password."""
    host.read_facts()
    if host.facts["uid"] == "0":
        return []
    if host.user("sudo -n true 2>/dev/null && echo yes || true").strip():
        host.sudo = "sudo -n"
        return []
    if not host.password and host.user("command -v sudo || true").strip():
        host.password = host.plan.password(host.target)
    if host.password:
        host.sudo = "?"
        try:
            host.root("true")
            return []
        except Refusal:
            pass
    raise Refusal(
        f"{host.target.user} has no rights by sudo" + ("" if host.password else ", and no password was given for it"),
        f"on the host, as root: `usermod -aG sudo {host.target.user}`; or name another user with --user",
    )


def nothing(host: Host) -> None:
    """Of a step that only looks."""


def _defaults(host: Host) -> list[str]:
    words = "\n".join(DEFAULT_PASSWORDS).encode()
    return host.root(f"python3 -c {shlex.quote(FIND_DEFAULTS)} 2>/dev/null || true", words).split()


def check_passwords(host: Host) -> list[str]:
    """No account has a password that everybody knows."""
    found = _defaults(host)
    if found and not host.plan.replace_default_password:
        raise Refusal(
            f"the password of {', '.join(found)} is a default that everybody knows",
            f"change it on the host with `passwd`, or give {REPLACE}: then only keys let anybody in",
        )
    return [f"take the default password of {name} away: only keys let in" for name in found]


def remove_passwords(host: Host) -> None:
    """No password fits any more; not `passwd -l`, because sshd may shut out a locked account, keys and all."""
    if host.sudo == "?":
        raise Refusal(
            f"sudo needs the password of {host.target.user}, so it cannot be taken away",
            "change it on the host with `passwd`, and give the new one",
        )
    for name in _defaults(host):
        host.root(f"usermod -p '*' {shlex.quote(name)}")
