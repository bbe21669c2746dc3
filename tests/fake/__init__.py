"""The parts of the fake llama-server; ``tests/fake_llama.py`` starts it."""
