"""N-gram language models: modified Kneser-Ney estimation, and the ARPA format."""
