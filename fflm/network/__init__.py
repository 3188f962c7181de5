"""The feedforward network: its configuration, its parameters, and its forward and backward pass.

This package uses the operations of a backend, but does not depend on a device. It knows neither text nor training.
"""
