"""Counterexamples to statements of arXiv 2603.04851 and the coverage of the estimators of `rolesafe.depth`."""
