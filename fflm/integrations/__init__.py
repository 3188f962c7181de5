"""Filters for programs that process collections on many machines. They keep the documents that `fflm.filter` keeps.

`texts` is what all have in common. Each of the others imports the program that it is for.
"""
