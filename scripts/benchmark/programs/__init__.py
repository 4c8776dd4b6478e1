"""Programs that the benchmark runs, each in a process of its own: JSON in its first argument, JSON on stdout."""
