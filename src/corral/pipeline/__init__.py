"""Serves one inference request."""
