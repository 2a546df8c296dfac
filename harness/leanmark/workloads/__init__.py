"""Workloads: reference models with their data, one file a family."""
