"""The version, in one place: setup.py reads it, and the worker reads it without loading package metadata."""

VERSION = "0.1.0"
