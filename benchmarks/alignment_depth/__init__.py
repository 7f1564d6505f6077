"""Study of alignment depth on tiny models, whose refusals are twelve tokens long."""
