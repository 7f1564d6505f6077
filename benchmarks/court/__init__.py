"""Speed, false vetoes and adaptive tries of the court."""
