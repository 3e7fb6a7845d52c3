"""What a training would need of machines that are not here: memory, traffic, time."""
