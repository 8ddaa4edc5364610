"""What is outside of a turn and sees it: spans, metrics, traces."""
