"""Prepare: recipes run for real, and the store of what they made."""
