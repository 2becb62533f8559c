"""Plot a worker's optical density live, with its standard error.

python plot_live_od.py                         # the only worker on this machine
python plot_live_od.py ipc:///run/stirbar/vial1
"""

import sys
from collections import deque

import matplotlib.pyplot as plt
import stirbar

SECONDS = 60

with stirbar.Worker(sys.argv[1] if len(sys.argv) > 1 else None) as worker:
    channels = {channel["stream"]: channel for channel in worker.describe()["channels"] if not channel["reference"]}
    name, channel = next(iter(channels.items()))
    times, values, errors = deque(), deque(), deque()
    figure, axes = plt.subplots()
    axes.set_xlabel("seconds")
    axes.set_ylabel(f"{name} at {channel['name']} ({channel['unit']}, normalised scatter)")
    for block in worker.stream(name, timeout_s=5):
        times.extend(block["monotonic_ns"] / 1e9)
        values.extend(block["value"])
        errors.extend(block["se_instrument"])
        while times[-1] - times[0] > SECONDS:
            times.popleft(), values.popleft(), errors.popleft()
        for artist in (*axes.lines, *axes.collections):
            artist.remove()
        shifted = [t - times[-1] for t in times]
        axes.fill_between(
            shifted,
            [v - 2 * e for v, e in zip(values, errors, strict=True)],
            [v + 2 * e for v, e in zip(values, errors, strict=True)],
            alpha=0.3,
            color="tab:blue",
        )
        axes.plot(shifted, values, color="tab:blue")
        axes.relim()
        axes.autoscale_view()
        plt.pause(0.001)
        if not plt.fignum_exists(figure.number):
            break
