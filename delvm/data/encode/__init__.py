"""The work of `delvm encode`: image shards to token shards."""
