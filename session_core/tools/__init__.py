"""What the model may call: functions, files of them, MCP servers."""
