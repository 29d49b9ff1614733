"""What a run is: its directory, its shell, its plan, its progress."""
