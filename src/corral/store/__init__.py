"""Remembers keys and usage in SQL. Imported only where there is a store, for what it needs takes memory."""
