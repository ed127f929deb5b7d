"""The gateway process: OpenAI HTTP in front, gRPC behind. Pure rooms check and render; `exchange` is the shell."""

from lbcore.grpc_threads import poll_in_one_thread

poll_in_one_thread()
