"""Tests of `session_core/telemetry/`: metrics and traces."""
