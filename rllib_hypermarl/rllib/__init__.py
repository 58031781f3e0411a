"""What plugs into RLlib: config, algorithm, module, env runner, learner, and the run directory around them."""
