"""The bridge tells the worker that it has no broker or no network, while that lasts."""

from __future__ import annotations

import pathlib

import pytest
from stirbar.bridge.offline import LEASE_S, OFFLINE_S, RENEW_S, OfflineSign, network_is_up


class Link:
    """What was asked of a worker that may be away."""

    def __init__(self) -> None:
        self.there = True
        self.asked: list[tuple[object, object]] = []

    def ask(self, body: dict[str, object], on_reply: object, now: float) -> bool:
        if self.there:
            self.asked.append((body["code"], body["seconds"]))
        return self.there


def network(directory: pathlib.Path, **states: str) -> str:
    for name, state in states.items():
        (directory / name).mkdir(exist_ok=True)
        (directory / name / "operstate").write_text(state + "\n")
    return str(directory)


@pytest.mark.parametrize(
    ("states", "up"),
    [({"lo": "up"}, False), ({"lo": "up", "eth0": "down"}, False), ({"lo": "up", "eth0": "down", "wlan0": "up"}, True)],
)
def test_network(tmp_path, states, up):
    assert network_is_up(network(tmp_path, **states)) is up


def test_an_unknown_network_is_the_brokers_fault(tmp_path):
    assert network_is_up(str(tmp_path / "none"))


def test_the_fault_is_reported_renewed_and_ended(tmp_path):
    link = Link()
    sign = OfflineSign(link, network(tmp_path, eth0="up"))  # type: ignore[arg-type]
    sign.step(True, 0.0)
    sign.step(False, 1.0)
    sign.step(False, OFFLINE_S)
    assert link.asked == []  # a short outage
    sign.step(False, 1.0 + OFFLINE_S)
    sign.step(False, OFFLINE_S + RENEW_S)
    assert link.asked == [(2, LEASE_S)]
    sign.step(False, 1.0 + OFFLINE_S + RENEW_S)
    assert link.asked == 2 * [(2, LEASE_S)]
    network(tmp_path, eth0="down")
    sign.step(False, 1.0 + OFFLINE_S + 2 * RENEW_S)
    assert link.asked[2:] == [(2, 0.0), (1, LEASE_S)]
    link.there = False
    sign.step(True, 100.0)
    link.there = True
    sign.step(True, 101.0)
    sign.step(True, 102.0)
    assert link.asked[4:] == [(1, 0.0)]
    assert RENEW_S < LEASE_S / 2
