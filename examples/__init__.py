"""Examples, each run by one command and read as documentation."""
