"""The leader's face: HTTP API, Bottle pages, live events."""
