"""Recipes say what a run does: strictly parsed TOML files. Nothing here needs torch."""
