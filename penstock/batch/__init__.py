"""Offline batch: every row of a file through a model, into another file, resumable. Serves nobody; asks once a row."""
