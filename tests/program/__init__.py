"""Tests of whole processes: start, signals, crashes, several servers, the README."""
