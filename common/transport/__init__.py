"""Over the wire: messages to records and back, chunks, gRPC channels and servers."""
