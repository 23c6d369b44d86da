"""A run from its directory to its end: launch, initial weights, resume, fit."""
