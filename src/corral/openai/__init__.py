"""The Pydantic models of the wire toward clients."""
