"""What can be trained: each module gives a `training.task.Task` for its configuration."""
