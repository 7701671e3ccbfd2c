"""Episodes, and the annotations they are given with."""
