"""Labels with the class frequencies of a prior: ``api``, and a solver for each device."""
