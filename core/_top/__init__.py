"""stirbar: a real-time controller for small bioreactors.

`stirbar.Worker` talks to a worker over ZeroMQ, `stirbar.Leader` to a leader over HTTP. Both are loaded on first use,
so that `import stirbar` costs nothing in the worker.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.client import Worker as Worker
    from stirbar.core.leader_client import Leader as Leader

    __version__: str

__all__ = ["Leader", "Worker", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Worker":
        from stirbar.core.client import Worker

        return Worker
    if name == "Leader":
        from stirbar.core.leader_client import Leader

        return Leader
    if name == "__version__":
        from importlib.metadata import version

        return version("stirbar")
    raise AttributeError(f"module 'stirbar' has no attribute {name!r}")
