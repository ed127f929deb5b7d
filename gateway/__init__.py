"""The gateway process: OpenAI HTTP in front, gRPC behind. Pure rooms check and render; `handlers` is the shell."""
