"""The `vardax` command: run experiments, list and show what there is. Only running one imports JAX."""

__all__: list[str] = []
