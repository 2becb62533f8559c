-- Units, runs, experiments and series are small tables with integer ids; data refer to a series.

CREATE TABLE leadership (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL
);
INSERT INTO leadership VALUES (1, 1);

CREATE TABLE unit (
    id INTEGER PRIMARY KEY,
    unit_id BLOB NOT NULL UNIQUE CHECK (length(unit_id) = 16),
    name TEXT NOT NULL,                 -- a label, not unique
    describe TEXT NOT NULL DEFAULT '{}',
    first_seen_ns INTEGER NOT NULL
);

CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    unit INTEGER NOT NULL REFERENCES unit,
    run_id BLOB NOT NULL CHECK (length(run_id) = 16),
    boot_id BLOB NOT NULL CHECK (length(boot_id) = 16),
    clock_ns INTEGER NOT NULL,          -- wall_ns - monotonic_ns of the first datum; readings keep the small rest
    first_seen_ns INTEGER NOT NULL,
    UNIQUE (unit, run_id)
);

CREATE TABLE experiment (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL DEFAULT '',
    created_ns INTEGER NOT NULL
);

CREATE TABLE assignment (               -- history; the row without an end is in force
    id INTEGER PRIMARY KEY,
    unit INTEGER NOT NULL REFERENCES unit,
    experiment INTEGER NOT NULL REFERENCES experiment,
    from_ns INTEGER NOT NULL,
    until_ns INTEGER
);
CREATE UNIQUE INDEX assignment_in_force ON assignment (unit) WHERE until_ns IS NULL;

CREATE TABLE series (                   -- one stream of one run in one experiment
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    stream INTEGER NOT NULL,
    experiment INTEGER NOT NULL REFERENCES experiment,
    angle INTEGER NOT NULL,
    UNIQUE (run, stream, experiment, angle)
);
CREATE INDEX series_by_stream ON series (stream, run);
CREATE INDEX series_by_experiment ON series (experiment, stream);

-- Which sequence numbers of a stream are here, or known to be lost: normally one row that starts at 0.
CREATE TABLE coverage (
    run INTEGER NOT NULL REFERENCES run,
    stream INTEGER NOT NULL,
    first_sequence INTEGER NOT NULL,
    end_sequence INTEGER NOT NULL,
    PRIMARY KEY (run, stream, first_sequence)
) WITHOUT ROWID;

-- id = series << 40 | sequence: key, order and index at once. NULL is NaN. `clock_ns` is what wall_ns - monotonic_ns
-- differs from that of the run.
CREATE TABLE reading (
    id INTEGER PRIMARY KEY,
    wall_ns INTEGER NOT NULL,
    clock_ns INTEGER NOT NULL,
    value REAL,
    se_instrument REAL,
    se_culture REAL,
    window_s REAL,
    noise_bandwidth_hz REAL,
    signal_v REAL,
    reference_v REAL,
    ambient_v REAL,
    blank REAL,
    used INTEGER NOT NULL,
    rejected INTEGER NOT NULL,
    flags INTEGER NOT NULL,
    half_cycle INTEGER NOT NULL
);

-- What a chart of hours or weeks needs, and where in `reading` a time is. bucket = wall time / length of the bucket.
CREATE TABLE rollup_10s (
    series INTEGER NOT NULL REFERENCES series,
    bucket INTEGER NOT NULL,
    count INTEGER NOT NULL,             -- of finite values
    low REAL,
    high REAL,
    sum REAL,
    first_sequence INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL,
    PRIMARY KEY (series, bucket)
) WITHOUT ROWID;

CREATE TABLE rollup_300s (
    series INTEGER NOT NULL REFERENCES series,
    bucket INTEGER NOT NULL,
    count INTEGER NOT NULL,
    low REAL,
    high REAL,
    sum REAL,
    first_sequence INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL,
    PRIMARY KEY (series, bucket)
) WITHOUT ROWID;

CREATE TABLE raw_chunk (
    series INTEGER NOT NULL REFERENCES series,
    first_sequence INTEGER NOT NULL,
    count INTEGER NOT NULL,             -- trace items
    raw_ns INTEGER NOT NULL,            -- the three clocks when the chunk was made
    monotonic_ns INTEGER NOT NULL,
    realtime_ns INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (series, first_sequence)
);
CREATE INDEX raw_chunk_by_time ON raw_chunk (realtime_ns);

CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    wall_ns INTEGER NOT NULL,
    unit INTEGER REFERENCES unit,       -- NULL: the leader itself
    series INTEGER REFERENCES series,   -- NULL: made by the leader
    sequence INTEGER,
    level TEXT NOT NULL,
    source TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    object TEXT NOT NULL                -- the whole JSON object
);
CREATE INDEX event_by_time ON event (wall_ns, id);
CREATE INDEX event_by_unit ON event (unit, wall_ns, id);

CREATE TABLE gap (                      -- what a unit had no more, so that it is known to be lost
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    stream INTEGER NOT NULL,
    first_sequence INTEGER NOT NULL,
    count INTEGER NOT NULL,
    reason TEXT NOT NULL,
    wall_ns INTEGER NOT NULL            -- when it was announced
);
CREATE INDEX gap_by_run ON gap (run, stream);

-- For people with an SQL shell.
CREATE VIEW readings AS
SELECT unit.name AS unit, hex(unit.unit_id) AS unit_id, hex(run.run_id) AS run_id, series.stream AS stream,
       reading.id & 0xffffffffff AS sequence, experiment.name AS experiment, series.angle AS angle,
       strftime('%Y-%m-%dT%H:%M:%fZ', reading.wall_ns / 1e9, 'unixepoch') AS timestamp, reading.wall_ns AS wall_ns,
       reading.wall_ns - reading.clock_ns - run.clock_ns AS monotonic_ns, value, se_instrument, se_culture, window_s,
       noise_bandwidth_hz, signal_v, reference_v, ambient_v, blank, used, rejected, flags, half_cycle
FROM reading
JOIN series ON series.id = reading.id >> 40
JOIN run ON run.id = series.run
JOIN unit ON unit.id = run.unit
JOIN experiment ON experiment.id = series.experiment;
