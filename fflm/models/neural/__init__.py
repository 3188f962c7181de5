"""The feedforward neural language model."""
