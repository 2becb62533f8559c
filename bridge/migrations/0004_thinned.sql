-- What retention took away, so that the sequence numbers that are accounted for still add up.

CREATE TABLE thinned (
    series INTEGER PRIMARY KEY REFERENCES series,
    before_ns INTEGER NOT NULL,         -- older readings are roll-ups only
    readings INTEGER NOT NULL,
    finite INTEGER NOT NULL,            -- of them, with a finite value
    raw_chunks INTEGER NOT NULL
);
