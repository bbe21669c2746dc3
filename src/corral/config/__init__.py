"""The settings, frozen, from corral.yaml, .env, the environment and flags."""
