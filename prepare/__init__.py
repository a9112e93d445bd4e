"""Makes data sets: archives and official files read, images decoded, dSprites drawn."""
