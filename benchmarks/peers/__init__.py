"""What our services are measured beside."""
