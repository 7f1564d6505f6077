"""Study of alignment depth on a real chat model: refusals after up to 500 forced tokens of a compliant reply."""
