"""CPU attention kernel, its build and the malloc settings; optional, behind one registry entry."""
