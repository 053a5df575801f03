"""One file for each model prefix."""
