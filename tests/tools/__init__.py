"""Tests of `session_core/tools/`: functions, MCP servers, calls side by side."""
