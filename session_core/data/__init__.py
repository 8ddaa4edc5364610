"""How things are written down."""
