"""Corral: the front door of llama.cpp."""

__version__ = "0.1.0"
