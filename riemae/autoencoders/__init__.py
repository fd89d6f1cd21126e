"""Autoencoders whose latent space has a good geometry."""
