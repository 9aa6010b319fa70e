"""Models made of layers: language models, models of series, and streams that run a model step by step."""
