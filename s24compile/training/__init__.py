"""Training: recipes, schedules, masked decay, flip rates, and the hooks that reach the user's optimizers."""
