"""The compiled insides of training: each engine is tested for its order of convergence."""
