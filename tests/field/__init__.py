"""What people's own models, data and machines did to it, each as a test."""
