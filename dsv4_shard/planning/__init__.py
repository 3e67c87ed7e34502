"""Checkpoint + request → plan: choice of deployment, weights and memory, search, nearby layouts, plan files."""
