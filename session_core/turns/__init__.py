"""One turn at a time in a session: started, watched, cancelled, resumed."""
