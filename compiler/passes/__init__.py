"""Graph to graph, one file a pass; the order stands in `pipeline.py`."""
