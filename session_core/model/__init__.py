"""The model server: its connection, its stream, its history, its capabilities, its failures."""
