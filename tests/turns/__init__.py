"""Tests of `turns/`: one turn at a time, its events, its end."""
