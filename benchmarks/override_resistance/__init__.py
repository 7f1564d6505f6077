"""Study of override resistance: all mechanisms, trained on the same data, under the same attacks.

    python -m benchmarks.override_resistance --out runs/resistance

Order of the modules: `settings`, `arms` (mechanisms), `data`, `train`, `measure` (utility, attacks, SEP, attention
mass), `job` (one arm), `store` (records), `targets` (verdicts), `run_report` (HTML, Markdown, CSV), `__main__` (command
line). For the committed records: `compact`, `table`, `rejudge`, `blocks` (parts of documentation pages).
"""
