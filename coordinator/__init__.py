"""The coordinator service: owns the foundation model and runs the federation."""
