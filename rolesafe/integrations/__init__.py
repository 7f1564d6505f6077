"""Role-aware models in other libraries: PEFT, TRL, and whatever a Trainer reports to.

Each module imports its library on import and names the extra that installs it.
"""
