"""Measures every op against its peers and against the machine: `python -m bench`. See NOTES.md for what it found."""
