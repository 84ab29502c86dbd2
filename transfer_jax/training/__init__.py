"""Floor 3: mesh, state, the compiled step, the loop, checkpoints and metric writers."""
