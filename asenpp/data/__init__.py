"""Data sets: index files, samplers, loading, and the two data sets that asenpp makes itself."""
