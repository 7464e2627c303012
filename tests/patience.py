"""How long tests wait for what must come: a bound that only a hang reaches. No test measures speed with it."""

PATIENCE_S = 300.0
