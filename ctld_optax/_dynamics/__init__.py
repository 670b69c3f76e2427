"""The physics, a small pure room for each idea; :mod:`langevin` is where they meet."""
