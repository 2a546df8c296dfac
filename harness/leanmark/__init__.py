"""leanmark: a reproducible benchmark harness for inference optimization."""

__version__ = "0.1.0"
