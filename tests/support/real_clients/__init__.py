"""Programs that talk through one client each, in an environment of its own, see `tests.real_clients`."""
