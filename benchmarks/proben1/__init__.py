"""The tables of the Proben1 report."""
