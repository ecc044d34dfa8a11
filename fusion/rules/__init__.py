"""The fusion rules, one per file; ``fusion/passes.py`` says in which order they run."""
