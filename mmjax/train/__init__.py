"""Training: one pure step, two routes over devices, a loop with effects at its edge."""
