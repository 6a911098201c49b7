"""What the memory behind a pool does on this machine, and which settings that speaks for."""
