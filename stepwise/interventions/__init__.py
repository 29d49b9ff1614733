"""InT's data pipeline (arXiv 2601.14209): from failed rollouts to interventions that a model can be trained on."""
