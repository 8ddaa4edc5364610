"""What sees the work of the server: spans, metrics, traces."""
