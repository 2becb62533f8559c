-- What people call a unit within an experiment, words by which units are chosen, how each unit's computer is, and who
-- has to stop what it does.

CREATE TABLE label (
    experiment INTEGER NOT NULL REFERENCES experiment,
    unit INTEGER NOT NULL REFERENCES unit,
    label TEXT NOT NULL,
    PRIMARY KEY (experiment, unit),
    UNIQUE (experiment, label)
) WITHOUT ROWID;

CREATE TABLE tag (
    unit INTEGER NOT NULL REFERENCES unit,
    tag TEXT NOT NULL,
    PRIMARY KEY (unit, tag)
) WITHOUT ROWID;

-- NULL: not told by that computer. The columns behind monotonic_ns are those of core/vitals.py.
CREATE TABLE vitals (
    series INTEGER NOT NULL REFERENCES series,
    sequence INTEGER NOT NULL,
    unit INTEGER NOT NULL REFERENCES unit,
    wall_ns INTEGER NOT NULL,
    monotonic_ns INTEGER NOT NULL,
    cpu_usage_percent REAL,
    cpu_frequency_mhz REAL,
    cpu_temperature_celcius REAL,
    available_memory_percent REAL,
    disk_usage_percent REAL,
    disk_available_gb REAL,
    wifi_signal_dbm REAL,
    under_voltage REAL,
    throttled REAL,
    clock_synchronized REAL,
    spool_bytes REAL,
    clock_offset_s REAL,                -- of the unit's wall clock ahead of the leader's
    PRIMARY KEY (series, sequence)
) WITHOUT ROWID;
CREATE INDEX vitals_by_unit ON vitals (unit, wall_ns);

CREATE TABLE standdown (                -- replaced units: they stop their jobs when they are heard of
    unit INTEGER PRIMARY KEY REFERENCES unit,
    since_ns INTEGER NOT NULL
);
