"""Sessions in files, sessions in Redis."""
