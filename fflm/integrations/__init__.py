"""Scores and filters for programs that process collections on many machines; each module imports its program only when used."""
