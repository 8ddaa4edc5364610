"""Tests of `storage.py` and `stores/`: sessions, and what a crash leaves of them."""
