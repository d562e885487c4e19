"""Callbacks: what happens between the steps of a run."""
