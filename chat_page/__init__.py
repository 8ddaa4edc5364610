"""The chat page and the API description: data files only."""
