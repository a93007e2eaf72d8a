"""The commands: flags, and which rooms they call."""
