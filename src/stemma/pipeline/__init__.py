"""Recipes, stages, run folders and the report: what turns the rooms below into one command."""
