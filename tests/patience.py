"""The time limit for expected events: only a hang reaches it. No test measures speed with it."""

PATIENCE_S = 300.0
