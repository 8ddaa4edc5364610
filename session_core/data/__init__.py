"""What a session, a message and a turn are, as data."""
