"""One turn at a time in a session: started, watched, recorded, cancelled, resumed."""
