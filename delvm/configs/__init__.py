"""Typed schemas of every verb, the checks across them, and where conf/ is."""
