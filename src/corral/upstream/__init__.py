"""Talks to llama-server and keeps it alive."""
