"""Labels whose classes are as frequent as a prior says: ``api``, and a solver for each device."""
