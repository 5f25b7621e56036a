"""Training: TFF's engine, federated algorithms, the centralized and local baselines, evaluation."""
