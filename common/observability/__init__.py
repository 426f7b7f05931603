"""What people and monitors see of a process: logs, metrics, traces, health, console."""
