-- Every version of the configuration that the leader distributes: to all units (unit_id empty), or to one. The number
-- counts over all of them, so that of what a unit is told the newest has the greatest.

CREATE TABLE config_version (
    version INTEGER PRIMARY KEY,
    unit_id BLOB NOT NULL,
    saved_ns INTEGER NOT NULL,
    saved_by TEXT NOT NULL,
    text TEXT NOT NULL,
    digest TEXT NOT NULL
);
CREATE INDEX config_version_by_unit ON config_version (unit_id, version);
