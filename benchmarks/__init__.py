"""Time, memory and what settings do: scripts of a checkout, README.md has the list."""
