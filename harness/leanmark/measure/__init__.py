"""Measure: paired latency, quality, footprint and environment of artifacts."""
