"""Fused graph nodes to loop IR."""
