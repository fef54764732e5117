"""Learning curves on Gymnasium's MuJoCo tasks, for every algorithm by one protocol: see __main__."""
