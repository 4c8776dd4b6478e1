"""The parts of scripts/bench.py: one module per question, each returning rows. Nothing here is product code."""
