-- As 0003 of the SQLite store: `zero_ns` is the leader's time at which the monotonic clock of a boot stood at zero.

CREATE TABLE boot (
    unit BIGINT NOT NULL REFERENCES unit,
    boot_id BYTEA NOT NULL CHECK (length(boot_id) = 16),
    zero_ns BIGINT NOT NULL,
    error_ns BIGINT NOT NULL,
    judged_ns BIGINT NOT NULL,
    PRIMARY KEY (unit, boot_id)
);

ALTER TABLE run ADD COLUMN clock_low_ns BIGINT;
ALTER TABLE run ADD COLUMN clock_high_ns BIGINT;
CREATE INDEX run_by_boot ON run (unit, boot_id);
