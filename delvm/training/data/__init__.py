"""Lightning's data modules: from files read at random, or from streams."""
