"""The rooms of session_server, behind its four front doors."""
