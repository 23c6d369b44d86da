"""A teacher's distributions over the tokens of fixed sentences, computed once and stored.

The distribution of a token depends on all tokens before it, so a cache is of complete sentences:
the first ones of an indexed data set, whose sentences are a function of shards and settings.
"""
