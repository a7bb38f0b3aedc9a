"""Networks that turn images into features: own small ones, and any vision model of transformers."""
