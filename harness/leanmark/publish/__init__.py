"""Publish: terminal tables and pages."""
