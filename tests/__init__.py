"""The tests, which lie as the rooms of the program do."""
