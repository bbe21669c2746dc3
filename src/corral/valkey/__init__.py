"""What several Corrals count together, in a Valkey or Redis. Imported only where one is set: it takes memory."""
