"""Tests of `data/`: sessions, messages and JSON, as data."""
