-- As 0007 of the SQLite store.

CREATE TABLE config_version (
    version BIGINT PRIMARY KEY,
    unit_id BYTEA NOT NULL,
    saved_ns BIGINT NOT NULL,
    saved_by TEXT NOT NULL,
    text TEXT NOT NULL,
    digest TEXT NOT NULL
);
CREATE INDEX config_version_by_unit ON config_version (unit_id, version);
