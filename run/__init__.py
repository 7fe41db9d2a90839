"""What surrounds a run: settings, plan, checkpoints, console, processes, publishing, commands."""
