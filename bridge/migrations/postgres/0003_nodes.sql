-- As 0006 of the SQLite store.

CREATE TABLE label (
    experiment BIGINT NOT NULL REFERENCES experiment,
    unit BIGINT NOT NULL REFERENCES unit,
    label TEXT NOT NULL,
    PRIMARY KEY (experiment, unit),
    UNIQUE (experiment, label)
);

CREATE TABLE tag (
    unit BIGINT NOT NULL REFERENCES unit,
    tag TEXT NOT NULL,
    PRIMARY KEY (unit, tag)
);

-- NULL: not told by that computer. The columns behind monotonic_ns are those of core/vitals.py.
CREATE TABLE vitals (
    series BIGINT NOT NULL REFERENCES series,
    sequence BIGINT NOT NULL,
    unit BIGINT NOT NULL REFERENCES unit,
    wall_ns BIGINT NOT NULL,
    monotonic_ns BIGINT NOT NULL,
    cpu_usage_percent DOUBLE PRECISION,
    cpu_frequency_mhz DOUBLE PRECISION,
    cpu_temperature_celcius DOUBLE PRECISION,
    available_memory_percent DOUBLE PRECISION,
    disk_usage_percent DOUBLE PRECISION,
    disk_available_gb DOUBLE PRECISION,
    wifi_signal_dbm DOUBLE PRECISION,
    under_voltage DOUBLE PRECISION,
    throttled DOUBLE PRECISION,
    clock_synchronized DOUBLE PRECISION,
    spool_bytes DOUBLE PRECISION,
    clock_offset_s DOUBLE PRECISION,                -- of the unit's wall clock ahead of the leader's
    PRIMARY KEY (series, sequence)
);
CREATE INDEX vitals_by_unit ON vitals (unit, wall_ns);

CREATE TABLE standdown (                -- replaced units: they stop their jobs when they are heard of
    unit BIGINT PRIMARY KEY REFERENCES unit,
    since_ns BIGINT NOT NULL
);
