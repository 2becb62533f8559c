-- A unit's wall clock may be wrong; its monotonic clock is not. `zero_ns` is the leader's time at which the monotonic
-- clock of a boot stood at zero, `error_ns` by how much the unit's wall clock was ahead of the leader's when last judged.

CREATE TABLE boot (
    unit INTEGER NOT NULL REFERENCES unit,
    boot_id BLOB NOT NULL CHECK (length(boot_id) = 16),
    zero_ns INTEGER NOT NULL,
    error_ns INTEGER NOT NULL,
    judged_ns INTEGER NOT NULL,
    PRIMARY KEY (unit, boot_id)
) WITHOUT ROWID;

-- The least and greatest wall_ns - monotonic_ns among the run's readings as they came; NULL: from before this version.
ALTER TABLE run ADD COLUMN clock_low_ns INTEGER;
ALTER TABLE run ADD COLUMN clock_high_ns INTEGER;
CREATE INDEX run_by_boot ON run (unit, boot_id);
