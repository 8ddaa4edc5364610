"""Measures the server as its users would meet it: `python -m benchmarks`. See README.md in this folder."""
