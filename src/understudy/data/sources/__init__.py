"""Data sources: one function a file, each giving a `Source`."""
