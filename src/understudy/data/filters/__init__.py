"""Filters of documents; one file each."""
