"""What several Corrals share: the connection to their Valkey, and the slots of llama-servers that all of them use."""
