"""The work of `delvm prepare`: a source's examples to image shards."""
