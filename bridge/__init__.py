"""The way from worker to leader: topics, spool and relay on the worker; ingest and store on the leader."""
