"""Transforms that a recipe can name. `Views` applies them; every one draws through `Draw`."""
