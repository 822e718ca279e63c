"""Who does the work and where: the only package that imports ray."""
