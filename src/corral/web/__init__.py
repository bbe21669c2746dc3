"""The HTTP edge: the FastAPI application and its probes."""
