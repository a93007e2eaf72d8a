"""Files: written whole or not at all, read with distrust, told apart by checksums."""
