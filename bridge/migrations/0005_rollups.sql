-- Roll-ups of 10 s, 60 s and 900 s instead of 10 s and 300 s: a chart of a week takes 672 of the longest, one of a day
-- 1440 of the middle ones.

CREATE TABLE rollup_60s (
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

CREATE TABLE rollup_900s (
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

INSERT INTO rollup_60s
SELECT series, bucket / 6, sum(count), min(low), max(high), sum(sum), min(first_sequence), max(last_sequence)
FROM rollup_10s GROUP BY 1, 2;

INSERT INTO rollup_900s
SELECT series, bucket / 15, sum(count), min(low), max(high), sum(sum), min(first_sequence), max(last_sequence)
FROM rollup_60s GROUP BY 1, 2;

DROP TABLE rollup_300s;
