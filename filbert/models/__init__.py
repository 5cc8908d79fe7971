"""The models: encoders, how they are built, saved and loaded, how their activations are read, and how they are made smaller."""
