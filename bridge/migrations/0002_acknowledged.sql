-- A warning or an error stays on the page until somebody acknowledges it. What is older than this was seen otherwise.

ALTER TABLE event ADD COLUMN acknowledged_ns INTEGER;
ALTER TABLE event ADD COLUMN acknowledged_by TEXT;
UPDATE event SET acknowledged_ns = CAST(strftime('%s', 'now') AS INTEGER) * 1000000000, acknowledged_by = 'update'
WHERE level IN ('warning', 'error');

CREATE INDEX event_open ON event (wall_ns, id) WHERE acknowledged_ns IS NULL AND level IN ('warning', 'error');
CREATE INDEX event_by_code ON event (unit, code, wall_ns);
