"""Files: whole or absent when written, distrusted when read."""
