"""The model server: its connection, its stream, its history, its tools, its failures."""
