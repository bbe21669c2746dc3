"""Tells what happened: metrics and logs."""
