"""Recipes: one file tells one whole algorithm."""
