"""Sweeps: candidates that Optuna proposes, Ray Tune trains, and several seeds judge."""
