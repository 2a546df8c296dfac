"""Declare: suites in YAML, and the cells that they plan."""
