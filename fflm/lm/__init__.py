"""What one does with a language model: train it on text, generate, score, look at its vectors.

Puts text, networks and training together; prints nothing.
"""
