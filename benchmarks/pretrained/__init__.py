"""Evaluation of pretrained chat models: injections, SEP, leaks, IFEval, ability, over-defence, cost, adaptive attacks.

    python -m benchmarks.pretrained evaluate MODEL --record FILE
    python -m benchmarks.pretrained train --out DIR
    python -m benchmarks.pretrained page

Supports any checkpoint: plain, retrained plain or role-aware. Modules in reading order: `settings` (selection of rows),
`texts` and `goals` (held-out phrasings), `data` (published test sets), `injections` (attacked messages), `suites` (one
module each), `answers` (batched replies), `record` (the file), `evaluate`, `arms` (recipes of the comparison), `train`,
`measures` and `page` (tables).
"""
