"""Data: sources, labels, seeded views, order and loaders."""
