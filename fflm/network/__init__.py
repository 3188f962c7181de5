"""What is computed and in which order: the network's configuration, its parameters, its forward and backward pass.

Knows the operations of a backend but no device, and neither text nor training.
"""
