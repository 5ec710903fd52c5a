"""Recipes (YAML) and what they are joined to (`python -m examples.maze_demo`)."""
