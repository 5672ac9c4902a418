"""The demonstration: three ways to sample under a constraint, measured against the truth."""
