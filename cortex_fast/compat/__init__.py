"""Drop-ins for other implementations: their names, their files."""
