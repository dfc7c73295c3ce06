"""What all parties share: signed objects, checks, channels, tasks. No network, no server state."""
