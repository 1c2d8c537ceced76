"""What a model is worth, beside baselines and with intervals. Nothing here trains."""
