"""Text classifiers: labeled text, the features that the network reads, training, prediction, metrics."""
