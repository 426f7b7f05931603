"""What coordinator and worker both need; imports nothing above it but the generated protocol."""
