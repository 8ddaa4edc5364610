"""Tests of `web/`: what HTTP callers and the page meet."""
