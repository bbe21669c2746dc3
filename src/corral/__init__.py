"""Corral: the front door of llama.cpp."""
