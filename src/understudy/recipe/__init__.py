"""Recipes: what a run is told, as YAML or from Python."""

from understudy.recipe.distill import distill
from understudy.recipe.finding import packaged
from understudy.recipe.loading import from_values, load
from understudy.recipe.recipe import Recipe
from understudy.recipe.schema import schema

__all__ = ["Recipe", "distill", "from_values", "load", "packaged", "schema"]
