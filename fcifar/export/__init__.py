"""Models and metrics in other formats, and models from elsewhere."""
