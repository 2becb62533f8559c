"""The real `pioreactor` package as a stranger: its own virtual environment, its own files, its own processes.

`STIRBAR_INTEROP` names the Python in which it is installed (`make interop`). Its jobs run as its command line would run
them, with its test mode's simulated converter and hall sensor. Its wheel holds no configuration, no hardware files and
no SQL: those here have the keys, addresses and columns that its code names.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sqlite3
import subprocess

PYTHON = os.environ.get("STIRBAR_INTEROP", "")
JOBS = {
    "od_reading": "background_jobs.od_reading",
    "stirring": "background_jobs.stirring",
    "growth_rate_calculating": "background_jobs.growth_rate_calculating",
    "mqtt_to_db_streaming": "background_jobs.leader.mqtt_to_db_streaming",
}
SAMPLES_PER_SECOND = 1
CONFIG = """\
[cluster.topology]
leader_hostname=pio-leader
leader_address=127.0.0.1
[mqtt]
username={username}
password={password}
broker_address=127.0.0.1
broker_port={port}
[PWM]
1=stirring
2=media
3=alt_media
4=waste
5=heating
[leds]
A=IR
B=
C=
D=
[od_config.photodiode_channel]
1=REF
2=90
[od_reading.config]
samples_per_second={samples}
ir_led_intensity=80
pd_reference_ema=0.75
[stirring.config]
initial_target_rpm=500
initial_duty_cycle=30
pwm_hz=200
use_rpm=1
duration_between_updates_seconds=3
[stirring.pid]
Kp=0.005
Ki=0
Kd=0
[growth_rate_calculating.config]
ekf_outlier_std_threshold=5.0
samples_for_od_statistics=10
[growth_rate_kalman]
od_std=0.0025
rate_std=0.25
obs_std=1.5
[storage]
database={directory}/pioreactor.sqlite
temporary_cache={directory}/temporary.sqlite
persistent_cache={directory}/persistent.sqlite
[logging]
log_file={directory}/pioreactor.log
console_log_level=DEBUG
"""
HARDWARE = {
    "temp": "address: 79\n",
    "pwm": 'controller: rpi_gpio\nheater_pwm_channel: "5"\npwm_to_pin: {"1": 17, "2": 13, "3": 16, "4": 12, "5": 18}\n',
    "gpio": "pcb_led_pin: 23\npcb_button_pin: 24\nhall_sensor_pin: 25\nsda_pin: 2\nscl_pin: 3\n",
}
COMMON = "experiment, pioreactor_unit, timestamp"
TABLES = {
    "od_readings": f"{COMMON}, od_reading, angle, channel",
    "raw_od_readings": f"{COMMON}, od_reading, channel",
    "od_readings_filtered": f"{COMMON}, normalized_od_reading",
    "growth_rates": f"{COMMON}, rate",
    "temperature_readings": f"{COMMON}, temperature_c",
    "stirring_rates": f"{COMMON}, measured_rpm",
    "dosing_events": f"{COMMON}, event, volume_change_ml, source_of_event",
    "led_change_events": f"{COMMON}, channel, intensity, source_of_event",
    "ir_led_intensities": f"{COMMON}, relative_intensity",
    "od_blanks": f"{COMMON}, od_reading, channel, angle",
    "pwm_dcs": f"{COMMON}, channel_1, channel_2, channel_3, channel_4, channel_5",
    "alt_media_fractions": f"{COMMON}, alt_media_fraction",
    "liquid_volumes": f"{COMMON}, liquid_volume",
    "logs": f"{COMMON}, message, source, level, task",
    "experiment_profile_runs": "started_at, experiment_profile_name, experiment",
    **{
        f"{kind}_automation_settings": "pioreactor_unit, experiment, started_at, ended_at, automation_name, settings"
        for kind in ("dosing", "led", "temperature")
    },
    **{
        f"{kind}_automation_events": f"{COMMON}, event_name, message, data" for kind in ("dosing", "led", "temperature")
    },
}


class Pioreactor:
    """One machine of the field: its name, its account at a broker, and its jobs."""

    def __init__(
        self, directory: pathlib.Path, name: str, experiment: str, port: int, account: tuple[str, str]
    ) -> None:
        self.directory = directory
        self.database = directory / "pioreactor.sqlite"
        directory.mkdir()
        config = directory / "config.ini"
        username, password = account
        config.write_text(
            CONFIG.format(
                username=username, password=password, port=port, samples=SAMPLES_PER_SECOND, directory=directory
            )
        )
        for place in (
            directory / "hardware" / "hats" / "1.1",
            directory / "hardware" / "models" / "pioreactor_40ml" / "1.0",
        ):
            place.mkdir(parents=True)
            for mod, text in HARDWARE.items():
                (place / f"{mod}.yaml").write_text(text)
        self.environment = {
            **{key: text for key, text in os.environ.items() if not key.startswith(("STIRBAR", "PYTHON"))},
            "TESTING": "1", "GLOBAL_CONFIG": str(config), "DOT_PIOREACTOR": str(directory),
            "RUN_PIOREACTOR": str(directory), "HOSTNAME": name, "EXPERIMENT": experiment, "ACTIVE": "1",
            "MODEL_NAME": "pioreactor_40ml", "MODEL_VERSION": "1.0", "HARDWARE": "1.1", "FIRMWARE": "0.5",
        }  # fmt: skip
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def make_tables(self) -> None:
        with sqlite3.connect(self.database) as connection:
            for table, columns in TABLES.items():
                connection.execute(f"CREATE TABLE {table} ({columns})")
        connection.close()

    def rows(self, statement: str, *values: object) -> list[tuple]:
        connection = sqlite3.connect(self.database, timeout=10)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def start(self, job: str) -> None:
        """Run one of its jobs until `stop`."""
        call = f"from pioreactor.{JOBS[job]} import click_{job} as job; job(args=[])"
        with open(self.log(job), "wb") as log:
            self.processes[job] = subprocess.Popen(
                [PYTHON, "-c", call], env=self.environment, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip

    def run(self, script: str, *arguments: str) -> str:
        """Run a script with its package to the end; what it printed."""
        done = subprocess.run(
            [PYTHON, "-c", script, *arguments], env=self.environment, cwd=self.directory, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def log(self, job: str) -> pathlib.Path:
        return self.directory / f"{job}.log"

    def said(self, job: str) -> str:
        return self.log(job).read_text(errors="replace")

    def alive(self, job: str) -> bool:
        return self.processes[job].poll() is None

    def stop(self, job: str, how: signal.Signals = signal.SIGINT) -> None:
        process = self.processes.pop(job)
        process.send_signal(how)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        for job in list(self.processes):
            self.stop(job)
