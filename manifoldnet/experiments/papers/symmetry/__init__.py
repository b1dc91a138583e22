"""Table 2 and Figure 3 of the symmetry paper: cells, the paper's numbers and claims, the report."""
