"""The border: protobuf and gRPC on one side, domain values and errors on the other."""
