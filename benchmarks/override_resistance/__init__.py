"""The study of override resistance: every mechanism, trained on the same data, under the same attacks.

    python -m benchmarks.override_resistance --out runs/resistance

Reads top to bottom: `settings` (what decides the outcome), `arms` (the mechanisms), `data`, `train`, `measure`
(utility, attacks, SEP, attention mass), `job` (one arm), `__main__` (the command line and the report).
"""
